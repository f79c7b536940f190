# Sends back what COM1 receives, until it receives a '!', which is sent back too and ends the guest with
# status 0.

        .pushsection .rodata.tests_guest_echo64, "a", @progbits
        .globl  tests_guest_echo64_start
        .globl  tests_guest_echo64_end
        .code64

tests_guest_echo64_start:
2:      mov     edx, 0x3fd
        in      al, dx
        test    al, 1                   # is there data?
        jz      2b
        mov     edx, 0x3f8
        in      al, dx
        out     dx, al
        cmp     al, 0x21
        jne     2b
        xor     eax, eax
        out     0xf4, al
3:      jmp     3b
tests_guest_echo64_end:
        .popsection
