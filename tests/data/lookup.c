/*
 * lookup.c - the table of csrc/networks.c alone, for tests/test_networks.py.
 *
 * Reads lines of "allow ADDRESS LENGTH", "deny ADDRESS LENGTH" and "peer
 * ADDRESS"; makes the table of the first two and writes "allow" or "deny" for
 * each of the last.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "networks.h"

#define LINES_MAX 200000

static char addresses[LINES_MAX][64];
static struct rf_network networks[LINES_MAX];
static const char *peers[LINES_MAX];

int main(void)
{
    struct rf_networks *table = NULL;
    size_t lines = 0, networks_count = 0, peers_count = 0;
    char word[16], rest[64];
    unsigned length;

    while (lines < LINES_MAX && scanf("%15s %63s", word, addresses[lines]) == 2) {
        if (strcmp(word, "peer") == 0) {
            peers[peers_count++] = addresses[lines++];
            continue;
        }
        if (scanf("%63s", rest) != 1)
            return 2;
        length = (unsigned)strtoul(rest, NULL, 10);
        networks[networks_count++] = (struct rf_network){
            .address = addresses[lines++],
            .length = (uint8_t)length,
            .allow = strcmp(word, "allow") == 0,
        };
    }
    if (rf_networks_new(networks, networks_count, &table) < 0)
        return 3;
    for (size_t i = 0; i < peers_count; i++) {
        union rf_address peer;

        if (rf_address_parse(peers[i], 0, &peer) < 0)
            return 4;
        puts(!table || rf_networks_allow(table, &peer) ? "allow" : "deny");
    }
    rf_networks_free(table);
    return 0;
}
