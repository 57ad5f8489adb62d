/*
 * messages.h - keeps what libbpf says of a failure, which would go to stderr.
 *
 * libbpf has one printer for the whole process, and its library may be shared
 * with others. So ours is put before theirs once, and keeps only what is said
 * between begin and end, thread by thread; all else goes on to theirs.
 */
#ifndef RF_MIRROR_MESSAGES_H
#define RF_MIRROR_MESSAGES_H

#include <stddef.h>

#define RF_MESSAGES_SIZE 256

/* Where the warnings of one call go: the last of them, in one line. */
struct rf_messages {
    char text[RF_MESSAGES_SIZE];
};

/* Keeps the warnings that libbpf has for this thread, until the end. They do not nest. */
void rf_messages_begin(struct rf_messages *messages);
void rf_messages_end(void);

/* Appends lines to a text as one line; of what is too long the end is kept. */
void rf_messages_append(char text[RF_MESSAGES_SIZE], const char *lines);

#endif
