# Exits by the book: a flat guest, entered in long mode on every vCPU with its index in RDI, that works
# through a table of steps. The table is appended to the program; each of its entries is
#
#       u16 operation (its place in `jumps`), u16 0, u32 count, u32 step, u32 address
#
# and is done `count + index * step` times; `address` is a port, an address in the gap or a status. Each
# operation makes exactly one exit each time, except for the string instructions (one for each element, or
# for as many as KVM batches), CPUID (none) and those that end things.
#
#   r12d  index of the vCPU
#   rbx   next entry
#   ecx   times left
#   edx   address
#
# Ends with `exits64_end`, where the table begins.

        .pushsection .rodata.tests_guest_exits64, "a", @progbits
        .globl  tests_guest_exits64_start
        .globl  tests_guest_exits64_end
        .code64

tests_guest_exits64_start:
.Lexits64_start:
        mov     r12d, edi
.Lexits64_again:
        lea     rbx, [rip + .Lexits64_end]
.Lexits64_next:
        movzx   eax, word ptr [rbx]
        mov     ecx, [rbx + 8]
        imul    ecx, r12d
        add     ecx, [rbx + 4]
        mov     edx, [rbx + 12]
        add     rbx, 16
        test    ecx, ecx
        jz      .Lexits64_next
        lea     r8, [rip + .Lexits64_jumps]
        movzx   r9d, word ptr [r8 + rax * 2]
        lea     r8, [rip + .Lexits64_start]
        add     r8, r9
        # What string instructions send, and where they receive: the program, and 64 KiB of memory that
        # no other vCPU uses.
        lea     rsi, [rip + .Lexits64_start]
        mov     edi, r12d
        shl     edi, 16
        add     edi, 0x200000
        mov     eax, 0x2e2e2e2e
        jmp     r8

.Lexits64_out8:
        out     dx, al
        dec     ecx
        jnz     .Lexits64_out8
        jmp     .Lexits64_next
.Lexits64_out16:
        out     dx, ax
        dec     ecx
        jnz     .Lexits64_out16
        jmp     .Lexits64_next
.Lexits64_out32:
        out     dx, eax
        dec     ecx
        jnz     .Lexits64_out32
        jmp     .Lexits64_next
.Lexits64_in8:
        in      al, dx
        dec     ecx
        jnz     .Lexits64_in8
        jmp     .Lexits64_next
.Lexits64_in16:
        in      ax, dx
        dec     ecx
        jnz     .Lexits64_in16
        jmp     .Lexits64_next
.Lexits64_in32:
        in      eax, dx
        dec     ecx
        jnz     .Lexits64_in32
        jmp     .Lexits64_next

.Lexits64_outs8:
        rep outsb
        jmp     .Lexits64_next
.Lexits64_outs16:
        rep outsw
        jmp     .Lexits64_next
.Lexits64_outs32:
        rep outsd
        jmp     .Lexits64_next
.Lexits64_ins8:
        rep insb
        jmp     .Lexits64_next
.Lexits64_ins16:
        rep insw
        jmp     .Lexits64_next
.Lexits64_ins32:
        rep insd
        jmp     .Lexits64_next

.Lexits64_read8:
        mov     al, [rdx]
        dec     ecx
        jnz     .Lexits64_read8
        jmp     .Lexits64_next
.Lexits64_read16:
        mov     ax, [rdx]
        dec     ecx
        jnz     .Lexits64_read16
        jmp     .Lexits64_next
.Lexits64_read32:
        mov     eax, [rdx]
        dec     ecx
        jnz     .Lexits64_read32
        jmp     .Lexits64_next
.Lexits64_read64:
        mov     rax, [rdx]
        dec     ecx
        jnz     .Lexits64_read64
        jmp     .Lexits64_next
.Lexits64_write8:
        mov     [rdx], al
        dec     ecx
        jnz     .Lexits64_write8
        jmp     .Lexits64_next
.Lexits64_write16:
        mov     [rdx], ax
        dec     ecx
        jnz     .Lexits64_write16
        jmp     .Lexits64_next
.Lexits64_write32:
        mov     [rdx], eax
        dec     ecx
        jnz     .Lexits64_write32
        jmp     .Lexits64_next
.Lexits64_write64:
        mov     [rdx], rax
        dec     ecx
        jnz     .Lexits64_write64
        jmp     .Lexits64_next

.Lexits64_hlt:
        hlt
        dec     ecx
        jnz     .Lexits64_hlt
        jmp     .Lexits64_next

        # CPUID is answered by KVM without an exit to user space.
.Lexits64_cpuid:
        mov     r10, rbx
        mov     r11d, ecx
2:      xor     eax, eax
        xor     ecx, ecx
        cpuid
        dec     r11d
        jnz     2b
        mov     rbx, r10
        jmp     .Lexits64_next

        # vCPU 0 ends the guest with a status; the others wait for that.
.Lexits64_end_guest:
        test    r12d, r12d
        jnz     .Lexits64_spin
        mov     al, dl
        out     0xf4, al
.Lexits64_spin:
        jmp     .Lexits64_spin

        # There are no interrupt descriptors: an exception can not be delivered, nor can the one that
        # follows from it.
.Lexits64_crash:
        ud2

.Lexits64_jumps:
        .short  .Lexits64_out8 - .Lexits64_start
        .short  .Lexits64_out16 - .Lexits64_start
        .short  .Lexits64_out32 - .Lexits64_start
        .short  .Lexits64_in8 - .Lexits64_start
        .short  .Lexits64_in16 - .Lexits64_start
        .short  .Lexits64_in32 - .Lexits64_start
        .short  .Lexits64_outs8 - .Lexits64_start
        .short  .Lexits64_outs16 - .Lexits64_start
        .short  .Lexits64_outs32 - .Lexits64_start
        .short  .Lexits64_ins8 - .Lexits64_start
        .short  .Lexits64_ins16 - .Lexits64_start
        .short  .Lexits64_ins32 - .Lexits64_start
        .short  .Lexits64_read8 - .Lexits64_start
        .short  .Lexits64_read16 - .Lexits64_start
        .short  .Lexits64_read32 - .Lexits64_start
        .short  .Lexits64_read64 - .Lexits64_start
        .short  .Lexits64_write8 - .Lexits64_start
        .short  .Lexits64_write16 - .Lexits64_start
        .short  .Lexits64_write32 - .Lexits64_start
        .short  .Lexits64_write64 - .Lexits64_start
        .short  .Lexits64_hlt - .Lexits64_start
        .short  .Lexits64_cpuid - .Lexits64_start
        .short  .Lexits64_end_guest - .Lexits64_start
        .short  .Lexits64_crash - .Lexits64_start
        .short  .Lexits64_spin - .Lexits64_start
        .short  .Lexits64_again - .Lexits64_start
        .balign 16
.Lexits64_end:
tests_guest_exits64_end:
        .popsection
