/* The end of the run. */
#pragma once

#include <stdbool.h>

/* Powers the machine off; the host learns `passed` where the VMM can tell it. */
_Noreturn void power_off(bool passed);

/* Reports that the run cannot go on, and ends it as failed. */
_Noreturn void give_up(const char *why);
