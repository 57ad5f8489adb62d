/*
 * gate.h - the engine, one turn at a time.
 *
 * The program is linked with --wrap for the two calls by which the outside
 * reaches the worker: epoll_wait becomes a gate, clock_gettime a clock that
 * moves one millisecond with each pass through it. At the gate the worker stays
 * until the main thread, which plays its peers, lets it look for events. When
 * there are some, it serves them and comes back: that is a turn.
 *
 * What is counted is the worker between two gates: callgrind is told by client
 * requests (run it with --collect-atstart=no), strace by marks, writes to
 * descriptor -1. System calls of a thread after its "counted" and before its
 * "gate" are the engine's own.
 */
#ifndef LOCKSTEP_GATE_H
#define LOCKSTEP_GATE_H

#include <stdbool.h>

/* Opens the two ends by which the gate knows that packets have arrived; ends a run that hangs. */
void gate_init(void);

/* Whether the turns from here on are counted. */
void gate_count(bool counting);

/* Turns until the engine is at rest. Steps have names for the message when one fails. */
void gate_settle(const char *step);

/*
 * Turns until the stream's end has reached each of these sockets, and none after
 * that. The kernel acknowledges the engine's FIN at once or up to 40 ms later,
 * maybe only with the FIN that answers it, and that wakes the engine. So it is
 * held until the answer is there too.
 */
void gate_turn_until_end(const char *step, const int *fds, int count);

/* From here on the worker comes and goes as it likes: for the end. */
void gate_open(void);

/* Ends the program with the error of a system call. */
_Noreturn void die(const char *what);

/* Ends the program, naming the step, unless this holds. */
void expect(bool holds, const char *what);

#endif
