# A kernel for tests of virtio devices: the first three are disks or interfaces, and the next one is the source of
# random bytes. It first writes nonsense to the registers of all four, as often as the word at the end of the program
# says, then makes the last one ready, and notifies it 1000 times for nothing. Then it has as many requests as the
# next word says, one after the other, each of which is done when its interrupt comes. Then it powers off.

        .pushsection .rodata.tests_guest_virtio64, "a", @progbits
        .globl  tests_guest_virtio64_start
        .globl  tests_guest_virtio64_end
        .code64

tests_guest_virtio64_start:
        mov     r12d, [rip + tests_guest_virtio64_end]
        mov     r13d, 0x12345678
        test    r12d, r12d
        jz      8f
2:      mov     ebx, 0xd0000000
3:      xor     ecx, ecx
4:      imul    r13d, r13d, 1664525
        add     r13d, 1013904223
        mov     eax, r13d
        mov     edx, r13d
        shr     edx, 28
        cmp     edx, 8                  # often a small number
        ja      5f
        and     eax, 15
5:      mov     [rbx + rcx], eax
        mov     eax, [rbx + rcx]
        test    r13d, 0x30
        jnz     6f
        mov     [rbx + rcx + 1], al
        mov     [rbx + rcx + 2], ax
        mov     rax, [rbx + rcx]
        mov     [rbx + rcx], rax
6:      add     ecx, 4
        cmp     ecx, 0x140
        jb      4b
        add     ebx, 0x1000
        cmp     ebx, 0xd0004000
        jb      3b
        dec     r12d
        jnz     2b
        # Each device once more as it should be, but a chain that never ends, and queues that do not exist.
        mov     ebx, 0xd0000000
7:      call    set_up
        mov     dword ptr [0x20000c], 1         # the descriptor goes on, at itself
        mov     dword ptr [0x200008], 0x1000
        mov     dword ptr [0x201000], 0x00010000
        mov     dword ptr [rbx + 0x50], 0
        mov     dword ptr [rbx + 0x50], 99
9:      mov     eax, [rbx + 0x70]               # until it needs a reset
        test    eax, 64
        jz      9b
        mov     dword ptr [0x201000], 0
        add     ebx, 0x1000
        cmp     ebx, 0xd0004000
        jb      7b
8:      mov     ebx, 0xd0003000
        call    set_up
        mov     ecx, 1000
2:      mov     dword ptr [rbx + 0x50], 0
        dec     ecx
        jnz     2b
        mov     r14d, [rip + tests_guest_virtio64_end + 4]
        test    r14d, r14d
        jz      3f
        call    connect
        mov     dword ptr [0x200000], 0x220000  # 64 bytes to be written, by the one descriptor
        mov     dword ptr [0x200008], 64
        mov     dword ptr [0x20000c], 2
        xor     r12d, r12d
        xor     r15d, r15d
        sti
2:      inc     r12d
        mov     [0x201002], r12w
        mov     dword ptr [rbx + 0x50], 0
4:      cmp     r15d, r12d                      # the handler counts here
        jne     4b
        cmp     [0x202002], r12w                # and finds what is done
        jne     9f
        cmp     r12d, r14d
        jne     2b
        cli
3:      mov     edx, 0x600
        mov     al, 0x34
        out     dx, al
3:      jmp     3b
9:      lidt    [rip + nothing]                 # a triple fault
        ud2

# The interrupt of the fourth device, on line 8 of the interrupt controller, becomes vector 0x30 of this processor.
connect:
        lea     rax, [rip + handler]
        mov     edi, 0x210300
        mov     [rdi], ax
        mov     word ptr [rdi + 2], 0x10
        mov     word ptr [rdi + 4], 0x8e00
        shr     rax, 16
        mov     [rdi + 6], ax
        shr     rax, 16
        mov     [rdi + 8], eax
        mov     dword ptr [rdi + 12], 0
        lidt    [rip + vectors]
        mov     al, 0xff                        # the old controllers are silent
        out     0x21, al
        out     0xa1, al
        mov     eax, 0xfee000f0                 # the local APIC is on
        mov     dword ptr [rax], 0x1ff
        mov     eax, 0xfec00000
        mov     dword ptr [rax], 0x21
        mov     dword ptr [rax + 0x10], 0
        mov     dword ptr [rax], 0x20
        mov     dword ptr [rax + 0x10], 0x30
        ret

# Two accesses to the device: what the interrupt is for, and that it is known.
handler:
        push    rax
        mov     eax, [rbx + 0x60]
        mov     [rbx + 0x64], eax
        inc     r15d
        mov     eax, 0xfee000b0
        mov     dword ptr [rax], 0
        pop     rax
        iretq

vectors:
        .word   0x30f
        .quad   0x210000
nothing:
        .word   0
        .quad   0

# Twelve writes.
set_up: mov     dword ptr [rbx + 0x70], 0
        mov     dword ptr [rbx + 0x70], 3
        mov     dword ptr [rbx + 0x24], 1
        mov     dword ptr [rbx + 0x20], 1
        mov     dword ptr [rbx + 0x70], 11
        mov     dword ptr [rbx + 0x30], 0
        mov     dword ptr [rbx + 0x38], 16
        mov     dword ptr [rbx + 0x80], 0x200000
        mov     dword ptr [rbx + 0x90], 0x201000
        mov     dword ptr [rbx + 0xa0], 0x202000
        mov     dword ptr [rbx + 0x44], 1
        mov     dword ptr [rbx + 0x70], 15
        ret
tests_guest_virtio64_end:
        .popsection
