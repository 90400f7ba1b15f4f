/*
 * vmexit N: ends the virtual machine with exit code N, through QEMU's isa-debug-exit at I/O port 0xf4, after what was
 * written to standard output has left the serial port.
 *
 * The kernel has no /dev/port, so this needs a program. It returns, with 0, when the machine has no such device.
 */
#include "freestanding.h"

enum { DEBUG_EXIT_PORT = 0xf4, TCSBRK = 0x5409 };

static int run(long argc, char **argv)
{
	const char *digits = argc > 1 ? argv[1] : "0";
	unsigned char code = 0;

	while (*digits >= '0' && *digits <= '9')
		code = (unsigned char)(code * 10 + (*digits++ - '0'));
	system_call(SYS_IOCTL, 1, TCSBRK, 1); /* tcdrain(1) */
	if (system_call(SYS_IOPL, 3, 0, 0) != 0)
		return 1;
	__asm__ volatile("outb %0, %1" : : "a"(code), "Nd"((unsigned short)DEBUG_EXIT_PORT));
	return 0;
}
