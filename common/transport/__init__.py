"""How bytes travel: the HTTP server and client, and the MessagePack link between daemons."""
