# As exits64.s, entered in real mode at 1000:0000 with the vCPU's index in DI. Counts are at most 65535.
# The only memory of devices that real mode reaches is above the memory of a guest of 1 MiB: an address is
# an offset from FFFF:0000, at least 0x10.
#
#   bp    index of the vCPU
#   bx    next entry
#   cx    times left
#   dx    address

        .pushsection .rodata.tests_guest_exits16, "a", @progbits
        .globl  tests_guest_exits16_start
        .globl  tests_guest_exits16_end
        .code16

tests_guest_exits16_start:
.Lexits16_start:
        jmp     2f
        .balign 4
        # Offsets in the code and data segments, which both begin at the start.
        .short  .Lexits16_end - .Lexits16_start         # [4]
        .short  .Lexits16_jumps - .Lexits16_start       # [6]
        .quad   0                                       # [8] an empty descriptor table
2:      mov     bp, di
        mov     ax, 0xffff
        mov     fs, ax
.Lexits16_again:
        mov     bx, ds:[4]
.Lexits16_next:
        mov     ax, [bx + 8]
        mul     bp
        add     ax, [bx + 4]
        mov     cx, ax
        mov     dx, [bx + 12]
        mov     si, [bx]
        add     bx, 16
        jcxz    .Lexits16_next
        # What string instructions send, and where they receive: the program, and 4 KiB of memory that no
        # other vCPU uses.
        mov     ax, bp
        shl     ax, 8
        add     ax, 0x3000
        mov     es, ax
        mov     eax, 0x2e2e2e2e
        mov     di, si
        add     di, di
        add     di, ds:[6]
        xor     si, si
        jmp     word ptr [di]

.Lexits16_out8:
        out     dx, al
        dec     cx
        jnz     .Lexits16_out8
        jmp     .Lexits16_next
.Lexits16_out16:
        out     dx, ax
        dec     cx
        jnz     .Lexits16_out16
        jmp     .Lexits16_next
.Lexits16_out32:
        out     dx, eax
        dec     cx
        jnz     .Lexits16_out32
        jmp     .Lexits16_next
.Lexits16_in8:
        in      al, dx
        dec     cx
        jnz     .Lexits16_in8
        jmp     .Lexits16_next
.Lexits16_in16:
        in      ax, dx
        dec     cx
        jnz     .Lexits16_in16
        jmp     .Lexits16_next
.Lexits16_in32:
        in      eax, dx
        dec     cx
        jnz     .Lexits16_in32
        jmp     .Lexits16_next

.Lexits16_outs8:
        rep outsb
        jmp     .Lexits16_next
.Lexits16_outs16:
        rep outsw
        jmp     .Lexits16_next
.Lexits16_outs32:
        rep outsd
        jmp     .Lexits16_next
.Lexits16_ins8:
        xor     di, di
        rep insb
        jmp     .Lexits16_next
.Lexits16_ins16:
        xor     di, di
        rep insw
        jmp     .Lexits16_next
.Lexits16_ins32:
        xor     di, di
        rep insd
        jmp     .Lexits16_next

.Lexits16_read8:
        mov     si, dx
2:      mov     al, fs:[si]
        dec     cx
        jnz     2b
        jmp     .Lexits16_next
.Lexits16_read16:
        mov     si, dx
2:      mov     ax, fs:[si]
        dec     cx
        jnz     2b
        jmp     .Lexits16_next
.Lexits16_read32:
        mov     si, dx
2:      mov     eax, fs:[si]
        dec     cx
        jnz     2b
        jmp     .Lexits16_next
.Lexits16_write8:
        mov     si, dx
2:      mov     fs:[si], al
        dec     cx
        jnz     2b
        jmp     .Lexits16_next
.Lexits16_write16:
        mov     si, dx
2:      mov     fs:[si], ax
        dec     cx
        jnz     2b
        jmp     .Lexits16_next
.Lexits16_write32:
        mov     si, dx
2:      mov     fs:[si], eax
        dec     cx
        jnz     2b
        jmp     .Lexits16_next

.Lexits16_hlt:
        hlt
        dec     cx
        jnz     .Lexits16_hlt
        jmp     .Lexits16_next

.Lexits16_cpuid:
        push    bx
        mov     si, cx
2:      xor     eax, eax
        xor     ecx, ecx
        cpuid
        dec     si
        jnz     2b
        pop     bx
        jmp     .Lexits16_next

.Lexits16_end_guest:
        test    bp, bp
        jnz     .Lexits16_spin
        mov     al, dl
        out     0xf4, al
.Lexits16_spin:
        jmp     .Lexits16_spin

        # In protected mode, without interrupt descriptors, an exception (of a segment that there is not) can
        # not be delivered, nor can those that follow from it. In real mode KVM's emulator delivers it,
        # whatever the table's limit is; and an undefined instruction is none to the emulator.
.Lexits16_crash:
        lidt    ds:[8]
        lgdt    ds:[8]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        mov     ax, 0x10
        mov     ds, ax
        hlt

        .balign 2
.Lexits16_jumps:
        .short  .Lexits16_out8 - .Lexits16_start
        .short  .Lexits16_out16 - .Lexits16_start
        .short  .Lexits16_out32 - .Lexits16_start
        .short  .Lexits16_in8 - .Lexits16_start
        .short  .Lexits16_in16 - .Lexits16_start
        .short  .Lexits16_in32 - .Lexits16_start
        .short  .Lexits16_outs8 - .Lexits16_start
        .short  .Lexits16_outs16 - .Lexits16_start
        .short  .Lexits16_outs32 - .Lexits16_start
        .short  .Lexits16_ins8 - .Lexits16_start
        .short  .Lexits16_ins16 - .Lexits16_start
        .short  .Lexits16_ins32 - .Lexits16_start
        .short  .Lexits16_read8 - .Lexits16_start
        .short  .Lexits16_read16 - .Lexits16_start
        .short  .Lexits16_read32 - .Lexits16_start
        # There is no access of 8 bytes: this one crashes.
        .short  .Lexits16_crash - .Lexits16_start
        .short  .Lexits16_write8 - .Lexits16_start
        .short  .Lexits16_write16 - .Lexits16_start
        .short  .Lexits16_write32 - .Lexits16_start
        .short  .Lexits16_crash - .Lexits16_start
        .short  .Lexits16_hlt - .Lexits16_start
        .short  .Lexits16_cpuid - .Lexits16_start
        .short  .Lexits16_end_guest - .Lexits16_start
        .short  .Lexits16_crash - .Lexits16_start
        .short  .Lexits16_spin - .Lexits16_start
        .short  .Lexits16_again - .Lexits16_start
        .balign 16
.Lexits16_end:
tests_guest_exits16_end:
        .code64
        .popsection
