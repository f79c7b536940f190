# A kernel for tests of what is shown of disks: it reads the first 4 KiB of the first one for ever, and looks itself whether a
# request is done. After each it writes to port 0x80, where nothing is.

        .pushsection .rodata.tests_guest_disk64, "a", @progbits
        .globl  tests_guest_disk64_start
        .globl  tests_guest_disk64_end
        .code64

tests_guest_disk64_start:
        mov     ebx, 0xd0000000
        mov     dword ptr [rbx + 0x70], 0
        mov     dword ptr [rbx + 0x70], 3
        mov     dword ptr [rbx + 0x24], 1       # of features only that it is no legacy
        mov     dword ptr [rbx + 0x20], 1
        mov     dword ptr [rbx + 0x70], 11
        mov     dword ptr [rbx + 0x30], 0
        mov     dword ptr [rbx + 0x38], 16
        mov     dword ptr [rbx + 0x80], 0x200000
        mov     dword ptr [rbx + 0x90], 0x201000
        mov     dword ptr [rbx + 0xa0], 0x202000
        mov     dword ptr [rbx + 0x44], 1
        mov     dword ptr [rbx + 0x70], 15
        # The request, which is all zeros: read, from sector 0.
        mov     dword ptr [0x200000], 0x220000
        mov     dword ptr [0x200008], 16
        mov     dword ptr [0x20000c], 0x00010001        # goes on with the next one
        # What is read.
        mov     dword ptr [0x200010], 0x221000
        mov     dword ptr [0x200018], 4096
        mov     dword ptr [0x20001c], 0x00020003        # written by the device, goes on
        # The status.
        mov     dword ptr [0x200020], 0x220100
        mov     dword ptr [0x200028], 1
        mov     dword ptr [0x20002c], 2                 # written by the device
        xor     r12d, r12d
2:      inc     r12d
        mov     [0x201002], r12w
        mov     dword ptr [rbx + 0x50], 0
3:      pause
        cmp     [0x202002], r12w
        jne     3b
        out     0x80, al
        jmp     2b
tests_guest_disk64_end:
        .popsection
