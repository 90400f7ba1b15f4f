/*
 * The first instructions: from the PVH entry point to C.
 *
 * Contract: the loader (QEMU -kernel, Cloud Hypervisor, Firecracker) jumps to the address in the
 * ELF note in 32-bit protected mode, paging off, flat segments, with the physical address of
 * hvm_start_info in ebx (Xen's "x86/HVM direct boot ABI"). We leave in 64-bit mode, interrupts
 * off, the first 16 MiB mapped at their own addresses, and call bare_main(start_info).
 *
 * Why 64-bit: Firecracker puts the disk's registers above 4 GiB.
 */

#define CR0_PAGING          0x80000000
#define CR4_PAE             0x20
#define MSR_EFER            0xc0000080
#define EFER_LONG_MODE      0x100
#define PAGE_PRESENT_WRITE  0x3
#define PAGE_LARGE          0x80
#define LARGE_PAGES         8               /* of 2 MiB each: program, buffers and start_info */
#define SELECTOR_CODE64     0x08
#define SELECTOR_DATA       0x10
#define XEN_PHYS32_ENTRY    18

    .section .note.pvh, "a", @note
    .balign 4
    .long 2f - 1f
    .long 4f - 3f
    .long XEN_PHYS32_ENTRY
1:  .asciz "Xen"
2:  .balign 4
3:  .quad pvh_entry
4:  .balign 4

    .section .entry, "ax", @progbits
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    movl $stack_top, %esp

    /* C expects its zeroed variables to be zero. */
    movl $bss_start, %edi
    movl $bss_dwords, %ecx
    xorl %eax, %eax
    rep stosl

    /* page_root[0] -> page_1g[0] -> page_2m[0..8] -> memory */
    movl $page_1g + PAGE_PRESENT_WRITE, page_root
    movl $page_2m + PAGE_PRESENT_WRITE, page_1g
    movl $page_2m, %edi
    movl $PAGE_PRESENT_WRITE + PAGE_LARGE, %eax
    movl $LARGE_PAGES, %ecx
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    decl %ecx
    jnz 1b

    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $page_root, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LONG_MODE, %eax
    wrmsr
    movl %cr0, %eax
    orl $CR0_PAGING, %eax
    movl %eax, %cr0

    lgdt gdt_pointer
    ljmp $SELECTOR_CODE64, $long_mode

    .code64
long_mode:
    movl $SELECTOR_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %ebx, %edi
    call bare_main
1:  hlt
    jmp 1b

    .section .rodata
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9a000000ffff                /* 64-bit code */
    .quad 0x00cf92000000ffff                /* data */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .section .bss
    .balign 4096
    .globl page_root
page_root:
    .skip 4096
page_1g:
    .skip 4096
page_2m:
    .skip 4096
    .skip 32768
stack_top:

    .section .note.GNU-stack, "", @progbits
