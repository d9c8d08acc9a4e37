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
# Assembled at test time: as --32; ld -m elf_i386 -Ttext 0x7c00 --oformat binary

        .code16
        .globl  _start
        .set    SERIAL, 0x3f8
        .set    TICKS_PER_BEAT, 18              # the BIOS counts 18.2 ticks a second

_start:
        ljmp    $0, $set_up                     # some BIOSes enter with CS=0x07c0
set_up:
        xorw    %bx, %bx
        movw    %bx, %ds
        movw    %bx, %es
        movw    %bx, %ss
        movw    $0x7000, %sp
        movb    %dl, boot_disk
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
        movb    boot_disk, %dl
        movw    $0x4300, %ax                    # extended write, without verify
        int     $0x13

        xorb    %ah, %ah                        # now: CX:DX ticks since midnight
        int     $0x1a
        movw    %dx, %bp
rest:
        hlt                                     # until the next interrupt
        xorb    %ah, %ah
        int     $0x1a
        subw    %bp, %dx
        cmpw    $TICKS_PER_BEAT, %dx
        jb      rest
        jmp     beat

hex_digits:     .ascii  "0123456789abcdef"
boot_disk:      .byte   0

        .balign 4
write_request:  .byte   16, 0                   # size of this request
        .word   1                               # sectors
        .word   line, 0                         # from where: offset, segment
        .quad   1                               # to sector 1

line:           .ascii  "beat 000000000"
last_digit:     .ascii  "0 boot "
boot_name:      .asciz  "00000000\n"

        .org    510
        .word   0xaa55
