#include "messages.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <bpf/libbpf.h>

#define MESSAGE_SIZE 1024 /* what is longer is a log, whose begin says what it is */

static pthread_once_t installed = PTHREAD_ONCE_INIT;
static libbpf_print_fn_t theirs;
static _Thread_local struct rf_messages *current;

static void append(char text[RF_MESSAGES_SIZE], const char *line, size_t length)
{
    static const char SEPARATOR[] = "; ";
    char joined[RF_MESSAGES_SIZE + MESSAGE_SIZE + sizeof(SEPARATOR)];
    int size = snprintf(joined, sizeof(joined), "%s%s%.*s", text, text[0] ? SEPARATOR : "",
                        (int)length, line);
    size_t over = (size_t)size >= RF_MESSAGES_SIZE ? (size_t)size - (RF_MESSAGES_SIZE - 1) : 0;

    /* What is left begins with a whole word. */
    if (over > 0)
        over += strcspn(joined + over, " ");
    memcpy(text, joined + over, (size_t)size - over + 1);
}

void rf_messages_append(char text[RF_MESSAGES_SIZE], const char *lines)
{
    while (*lines) {
        size_t length = strcspn(lines, "\n");
        if (length > 0)
            append(text, lines, length < MESSAGE_SIZE ? length : MESSAGE_SIZE);
        lines += length + (lines[length] == '\n');
    }
}

__attribute__((format(printf, 2, 0))) static int keep(enum libbpf_print_level level,
                                                      const char *format, va_list arguments)
{
    static const char PREFIX[] = "libbpf: ";
    char message[MESSAGE_SIZE];

    if (!current)
        return theirs ? theirs(level, format, arguments) : 0;
    if (level != LIBBPF_WARN)
        return 0;
    vsnprintf(message, sizeof(message), format, arguments);
    size_t skipped = strncmp(message, PREFIX, sizeof(PREFIX) - 1) == 0 ? sizeof(PREFIX) - 1 : 0;
    rf_messages_append(current->text, message + skipped);
    return 0;
}

static void install(void)
{
    theirs = libbpf_set_print(keep);
}

void rf_messages_begin(struct rf_messages *messages)
{
    pthread_once(&installed, install);
    messages->text[0] = '\0';
    current = messages;
}

void rf_messages_end(void)
{
    current = NULL;
}
