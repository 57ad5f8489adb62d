/*
 * table.h - replaces the content of a map as a whole, without a gap.
 *
 * The kernel has no command for that. So a table remembers what it has put
 * into its map: new entries go in first, those that are gone are deleted
 * afterwards, and one that stays is never absent.
 *
 * A record is a key with its value behind it. A table owns its records; it
 * does not own the map.
 */
#ifndef RF_MIRROR_TABLE_H
#define RF_MIRROR_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct rf_table {
    int map_fd;
    size_t key_size;
    size_t record_size;
    size_t max;
    uint8_t *records; /* what the map may hold, sorted by key */
    size_t count;
};

void rf_table_init(struct rf_table *table, int map_fd, size_t key_size, size_t record_size,
                   size_t max);

/*
 * Makes the map hold these records and no others; sorts them. -E2BIG: more
 * than the map has room for. -EEXIST: two records of one key that differ.
 */
int rf_table_replace(struct rf_table *table, uint8_t *records, size_t count);

void rf_table_free(struct rf_table *table);

#endif
