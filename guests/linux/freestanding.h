/*
 * What the guest's own small programs need instead of a libc: system calls on x86-64, and a start that calls
 * run(argc, argv). They are built with -nostdlib and are a few hundred bytes each.
 */

enum { SYS_WRITE = 1, SYS_OPEN = 2, SYS_IOCTL = 16, SYS_EXIT = 60, SYS_IOPL = 172 };

static long system_call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

static int run(long argc, char **argv);

/* The stack as the kernel leaves it: argc, argv[0], argv[1], ... */
__attribute__((noreturn, used)) static void start(long *stack)
{
	long status = run(stack[0], (char **)(stack + 1));

	for (;;)
		system_call(SYS_EXIT, status, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
