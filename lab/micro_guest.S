# A guest that fits its boot sector: it counts seconds and shows the count where it can be seen.
#
# Once a second it adds one to a decimal counter and puts the line
#
#     beat NNNNNNNNNN boot XXXXXXXX
#
# on the first serial port and at the start of sector 1 of the disk it booted from. XXXXXXXX comes
# from the processor's time stamp at boot: a guest that was started anew has another one, a guest
# that migrated alive has the same and its count goes on.
#
# Each beat it also reads what is wished of it from the first two bytes of sector 8, so that whoever
# writes the disk switches its load on and off: the ticks of each beat (0 to 18) in which it burns its
# processor, and how many times 64 KiB of memory (0 to 8) it changes all the while. Sector 8 is the
# start of a page of its own: who writes it never writes the counter back.
#
# Assembled at test time: as --32; ld -m elf_i386 -Ttext 0x7c00 --oformat binary

        .code16
        .globl  _start
        .set    SERIAL, 0x3f8
        .set    TICKS_PER_BEAT, 18              # the BIOS counts 18.2 ticks a second
        .set    WISH, 0x600                     # where sector 8 is read to

_start:
        ljmp    $0, $set_up                     # some BIOSes enter with CS=0x07c0
set_up:
        xorw    %bx, %bx
        movw    %bx, %ds
        movw    %bx, %es
        movw    %bx, %ss
        movw    $0x7000, %sp
        movb    %dl, boot_disk
        movw    %bx, WISH                       # at first: rest
        cld
        sti

        rdtsc                                   # name this boot: EAX as eight hex digits
        movl    %eax, %edx
        movw    $boot_name, %di
        movw    $8, %cx
next_digit:
        roll    $4, %edx
        movw    %dx, %bx
        andw    $0x0f, %bx
        movb    hex_digits(%bx), %al
        stosb
        loop    next_digit

beat:
        movw    $last_digit, %bx                # one more, carrying to the left
carry:
        incb    (%bx)
        cmpb    $'9', (%bx)
        jbe     show
        movb    $'0', (%bx)
        decw    %bx
        jmp     carry

show:
        movw    $line, %si
next_char:
        lodsb
        testb   %al, %al
        jz      save
        movb    %al, %ah
        movw    $SERIAL + 5, %dx
wait_for_serial:
        inb     %dx, %al
        testb   $0x20, %al                      # transmitter empty
        jz      wait_for_serial
        movb    %ah, %al
        movw    $SERIAL, %dx
        outb    %al, %dx
        jmp     next_char

save:
        movw    $write_request, %si
        movw    $0x4300, %ax                    # extended write, without verify
        call    transfer
        movw    $read_request, %si
        movb    $0x42, %ah                      # extended read
        call    transfer

        xorb    %ah, %ah                        # now: CX:DX ticks since midnight
        int     $0x1a
        movw    %dx, %bp
rest:
        xorb    %ah, %ah
        int     $0x1a
        subw    %bp, %dx
        cmpw    $TICKS_PER_BEAT, %dx
        jae     beat
        cmpb    WISH, %dl
        jb      burn
        hlt                                     # until the next interrupt
        jmp     rest

burn:
        movzbw  WISH + 1, %cx
        jcxz    rest
next_part:
        movw    %cx, %ax
        shlw    $12, %ax
        movw    %ax, %es                        # from 0x10000 upwards
        xorw    %di, %di
next_page:
        incb    %es:(%di)
        addw    $0x1000, %di
        jnz     next_page
        loop    next_part
        jmp     rest

transfer:
        movb    boot_disk, %dl
        int     $0x13
        ret

hex_digits:     .ascii  "0123456789abcdef"
boot_disk:      .byte   0

        .balign 4
write_request:  .byte   16, 0                   # size of this request
        .word   1                               # sectors
        .word   line, 0                         # from where: offset, segment
        .quad   1                               # to sector 1

read_request:   .byte   16, 0
        .word   1
        .word   WISH, 0
        .quad   8                               # from sector 8

line:           .ascii  "beat 000000000"
last_digit:     .ascii  "0 boot "
boot_name:      .asciz  "00000000\n"

        .org    510
        .word   0xaa55
