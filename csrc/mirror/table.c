#include "table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/bpf.h>

void rf_table_init(struct rf_table *table, int map_fd, size_t key_size, size_t record_size,
                   size_t max)
{
    *table = (struct rf_table){
        .map_fd = map_fd, .key_size = key_size, .record_size = record_size, .max = max};
}

void rf_table_free(struct rf_table *table)
{
    free(table->records);
    table->records = NULL;
    table->count = 0;
}

/* Heapsort: qsort cannot be told the size of the key, and qsort_r is not in every C library. */
static void sift(const struct rf_table *table, uint8_t *records, size_t root, size_t count)
{
    size_t size = table->record_size, child;
    uint8_t moved[64];

    while ((child = 2 * root + 1) < count) {
        if (child + 1 < count &&
            memcmp(records + child * size, records + (child + 1) * size, table->key_size) < 0)
            child++;
        if (memcmp(records + root * size, records + child * size, table->key_size) >= 0)
            return;
        memcpy(moved, records + root * size, size);
        memcpy(records + root * size, records + child * size, size);
        memcpy(records + child * size, moved, size);
        root = child;
    }
}

static void sort(const struct rf_table *table, uint8_t *records, size_t count)
{
    size_t size = table->record_size;
    uint8_t moved[64];

    for (size_t i = count / 2; i-- > 0;)
        sift(table, records, i, count);
    for (size_t end = count; end-- > 1;) {
        memcpy(moved, records, size);
        memcpy(records, records + end * size, size);
        memcpy(records + end * size, moved, size);
        sift(table, records, 0, end);
    }
}

/* Drops doubles from sorted records: how many are left, or -EEXIST. */
static int unite(const struct rf_table *table, uint8_t *records, size_t *count)
{
    size_t size = table->record_size, kept = 0;

    for (size_t i = 0; i < *count; i++) {
        uint8_t *last = records + (kept - 1) * size, *record = records + i * size;
        if (kept > 0 && memcmp(last, record, table->key_size) == 0) {
            if (memcmp(last, record, size) != 0)
                return -EEXIST;
            continue;
        }
        memmove(records + kept++ * size, record, size);
    }
    *count = kept;
    return 0;
}

/* Deletes what is in the map and not among these records, both sorted. */
static int delete_others(const struct rf_table *table, const uint8_t *records, size_t count)
{
    size_t size = table->record_size, at = 0;

    for (size_t i = 0; i < table->count; i++) {
        const uint8_t *old = table->records + i * size;
        while (at < count && memcmp(records + at * size, old, table->key_size) < 0)
            at++;
        if (at < count && memcmp(records + at * size, old, table->key_size) == 0)
            continue;
        int r = bpf_map_delete_elem(table->map_fd, old);
        if (r < 0 && r != -ENOENT)
            return r;
    }
    return 0;
}

int rf_table_replace(struct rf_table *table, uint8_t *records, size_t count)
{
    size_t size = table->record_size;
    uint8_t *kept;
    int r;

    sort(table, records, count);
    r = unite(table, records, &count);
    if (r < 0)
        return r;
    if (count > table->max)
        return -E2BIG;
    /* Room for all old and all new ones: what the map holds should the kernel fail midway. */
    kept = malloc((table->count + count + 1) * size);
    if (!kept)
        return -ENOMEM;
    if (count > 0)
        memcpy(kept, records, count * size);
    for (size_t i = 0; i < count && r == 0; i++)
        r = bpf_map_update_elem(table->map_fd, kept + i * size, kept + i * size + table->key_size,
                                BPF_ANY);
    if (r == 0)
        r = delete_others(table, kept, count);
    if (r < 0) {
        if (table->count > 0)
            memcpy(kept + count * size, table->records, table->count * size);
        count += table->count;
        sort(table, kept, count);
    }
    free(table->records);
    table->records = kept;
    table->count = count;
    return r;
}
