/*
 * seed: tells the kernel that its random numbers are random enough.
 *
 * A guest without RDRAND would wait two seconds for that, in whatever asks first. Here random numbers only have to
 * differ from boot to boot, so that a block left over from an earlier run is never mistaken for a new one; for that,
 * the time stamp counter does. Never do this where anything is secret.
 */
#include "freestanding.h"

enum { O_WRONLY = 1, WORDS = 8 };
static const long RNDADDENTROPY = 0x40085203;

static int run(long argc, char **argv)
{
	struct {
		int entropy_bits;
		int bytes;
		unsigned long long words[WORDS];
	} pool = { WORDS * 64, WORDS * 8, { 0 } };
	long fd = system_call(SYS_OPEN, (long)"/dev/random", O_WRONLY, 0);

	(void)argc;
	(void)argv;
	if (fd < 0)
		return 1;
	for (int i = 0; i < WORDS; i++)
		pool.words[i] = __builtin_ia32_rdtsc() * 0x9e3779b97f4a7c15ull;
	return system_call(SYS_IOCTL, fd, RNDADDENTROPY, (long)&pool) != 0;
}
