/*
 * The lines of report.h. They are written as they happen, so that a run that hangs shows where.
 */
#include "report.h"

#include "console.h"

static char subject[] = "disk0/";
static bool has_subject;
static const char *open_check;
static bool open_check_failed;
static uint64_t count_ok, count_failed, count_skipped;

void report_subject(unsigned index)
{
    subject[4] = (char)('0' + index);
    has_subject = true;
}

static void print_name(const char *verdict, const char *name)
{
    print("%s %s%s", verdict, has_subject ? subject : "", name);
}

void check_begin(const char *name)
{
    check_end();
    open_check = name;
    open_check_failed = false;
}

bool check_fails_now(void)
{
    if (open_check == NULL || open_check_failed)
        return false;
    open_check_failed = true;
    count_failed++;
    print_name("FAIL", open_check);
    print(": ");
    return true;
}

void expect_number(const char *what, uint64_t expected, uint64_t got)
{
    if (expected != got)
        check_fail("expected %s %lu got %lu", what, expected, got);
}

void check_end(void)
{
    if (open_check == NULL)
        return;
    if (!open_check_failed) {
        count_ok++;
        print_name("ok", open_check);
    }
    print("\n");
    open_check = NULL;
}

void check_skip(const char *name, const char *why)
{
    count_skipped++;
    print_name("skip", name);
    print(": %s\n", why);
}

bool report_totals(void)
{
    check_end();
    print("done: %lu ok, %lu failed, %lu skipped\n", count_ok, count_failed, count_skipped);
    return count_failed == 0;
}
