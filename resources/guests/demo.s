# The guest program of `vmm demo`: a flat guest, entered in long mode on every vCPU with its index in
# RDI. It keeps its vCPU busy with all kinds of exits, at a rate that rises and falls.
#
# It is assembled into the VMM's read-only data, so it must run wherever it is put: no absolute address,
# no data of its own.
#
#   r12  index of the vCPU
#   r13  iterations done
#   r14  CPUIDs to go before the next iteration
#   r15  device memory: an address in the gap where nothing is

        .pushsection .rodata.vmm_demo_guest, "a", @progbits
        .balign 16
        .globl  vmm_demo_guest_start
        .globl  vmm_demo_guest_end
        .code64

vmm_demo_guest_start:
        mov     r12, rdi
        xor     r13d, r13d
        mov     r15d, 0xd0000000

iteration:
        # Always: a write to the POST port, where nothing is.
        mov     eax, r13d
        out     0x80, al

        # Every second time: ask COM1 whether it can send.
        test    r13b, 1
        jnz     2f
        mov     edx, 0x3fd
        in      al, dx
2:
        # Every fourth: read device memory, eight bytes of all ones.
        test    r13b, 3
        jnz     2f
        mov     rax, [r15]
2:
        # Every eighth: write device memory, four bytes. Odd vCPUs do so twice.
        test    r13b, 7
        jnz     2f
        mov     [r15 + 0x10], r13d
        test    r12b, 1
        jz      2f
        mov     [r15 + 0x14], r13d
2:
        # Every sixteenth: halt, which comes back at once. Each vCPU halts once more than the one before.
        test    r13b, 15
        jnz     2f
        mov     ecx, r12d
3:      hlt
        dec     ecx
        jns     3b
2:
        # Every sixty-fourth: send a dot to COM1.
        test    r13b, 63
        jnz     2f
        mov     edx, 0x3f8
        mov     al, 0x2e
        out     dx, al
2:
        inc     r13d

        # How long to wait: a triangle wave over 4096 iterations, each vCPU a quarter further on. A CPUID
        # takes about a microsecond wherever it is trapped, so that the guest needs no clock.
        mov     eax, r12d
        shl     eax, 10
        add     eax, r13d
        and     eax, 0xfff
        cmp     eax, 0x800
        jb      2f
        xor     eax, 0xfff
2:      shr     eax, 5
        mov     r14d, eax
wait:
        dec     r14d
        js      iteration
        xor     eax, eax
        xor     ecx, ecx
        cpuid
        jmp     wait
vmm_demo_guest_end:

        .popsection
