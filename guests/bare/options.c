/*
 * Looking words up in the command line, where it lies.
 */
#include "options.h"

#define START_INFO_MAGIC 0x336ec578
/* entry.S maps no more. */
#define MAPPED_BYTES (16u << 20)

/* The start of hvm_start_info. */
struct start_info {
    uint32_t magic, version, flags, modules;
    uint64_t module_list;
    uint64_t command_line;
};

static const char *command_line = "";

void options_init(uint32_t start_info)
{
    const struct start_info *info = (const struct start_info *)(uintptr_t)start_info;
    if (start_info >= MAPPED_BYTES || info->magic != START_INFO_MAGIC)
        return;
    if (info->command_line != 0 && info->command_line < MAPPED_BYTES)
        command_line = (const char *)info->command_line;
}

/* What follows `prefix` in `text`, or NULL. */
static const char *after(const char *text, const char *prefix)
{
    if (text == NULL)
        return NULL;
    while (*prefix != '\0')
        if (*text++ != *prefix++)
            return NULL;
    return text;
}

/* The value of the word sluice.SUBJECTKEY=VALUE, or NULL. */
static const char *find(const char *subject, const char *key)
{
    const char *word = command_line;
    while (*word != '\0') {
        const char *value = after(after(after(after(word, "sluice."), subject), key), "=");
        if (value != NULL)
            return value;
        while (*word != '\0' && *word++ != ' ')
            ;
    }
    return NULL;
}

static const char *find_of_disk(unsigned index, const char *key)
{
    char subject[] = "disk0.";
    subject[4] = (char)('0' + index);
    return find(subject, key);
}

bool option_text(unsigned index, const char *key, char *value, size_t value_bytes)
{
    const char *from = find_of_disk(index, key);
    if (from == NULL)
        return false;
    size_t length = 0;
    while (length + 1 < value_bytes && from[length] != '\0' && from[length] != ' ') {
        value[length] = from[length];
        length++;
    }
    value[length] = '\0';
    return true;
}

static bool parse_number(const char *text, uint64_t *value)
{
    if (text == NULL || *text < '0' || *text > '9')
        return false;
    for (*value = 0; *text >= '0' && *text <= '9'; text++)
        *value = *value * 10 + (uint64_t)(*text - '0');
    return true;
}

bool option_number(unsigned index, const char *key, uint64_t *value)
{
    return parse_number(find_of_disk(index, key), value);
}

bool machine_option_number(const char *key, uint64_t *value)
{
    return parse_number(find("", key), value);
}

bool same_text(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}
