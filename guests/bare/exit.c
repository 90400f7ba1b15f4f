/*
 * Powering off, and telling the host how it went.
 *
 * Each VMM has a port of its own for it, and ignores the others' (or takes no harm: on QEMU's
 * q35, 0x600 is a status register in which a written one clears a bit). So all are tried, the
 * one that carries an exit status first:
 *   QEMU              isa-debug-exit at 0xf4; QEMU exits with (value << 1) | 1
 *   Cloud Hypervisor  ACPI shutdown device at 0x600: sleep enable, sleep type 5
 *   Firecracker       keyboard controller at 0x64: reset, which ends the VMM
 */
#include "exit.h"

#include "report.h"
#include "x86.h"

/* 33 and 35 as QEMU's exit status. QEMU's own failures exit with 1, a triple fault with 0. */
#define DEBUG_EXIT_PASSED 0x10
#define DEBUG_EXIT_FAILED 0x11

_Noreturn void power_off(bool passed)
{
    out8(0xf4, passed ? DEBUG_EXIT_PASSED : DEBUG_EXIT_FAILED);
    out8(0x600, 0x34);
    out8(0x64, 0xfe);
    for (;;)
        __asm__ volatile("cli; hlt");
}

_Noreturn void give_up(const char *why)
{
    check_begin("run");
    check_fail("expected to go on got: %s", why);
    check_end();
    report_totals();
    power_off(false);
}
