# What we use of kazoo 2.10, which has no type information of its own.
