/*
 * state.h - what one image of pause leaves to the next: struct state_head, then records, each a struct
 * state_record and its body. ../PROTOCOL.md explains it. Bodies only ever grow at their end.
 */
#ifndef CRISERVER_STATE_H
#define CRISERVER_STATE_H

#include "protocol.h"

#define STATE_MAGIC 0x31545350u /* "PST1" */
#define STATE_VERSION 1u
#define STATE_QUESTION "state-1" /* the argument that asks a binary whether it reads version 1 */
#define STATE_READABLE 77	 /* its exit status if so */

struct state_head {
	uint32_t magic, version;
};

enum state_type {
	STATE_END = 0,
	STATE_POD = 1,
	STATE_TASK = 2,
	STATE_BYTES = 3,     /* struct state_bytes and the bytes */
	STATE_KEPT = 4,	     /* struct msg_name and descriptor numbers, at most STATE_FDS */
	STATE_KEPT_MORE = 5, /* more of the same name */
};

#define STATE_FDS 256u

struct state_record {
	uint32_t type, size; /* bytes of the body */
};

struct state_pod {
	int32_t control; /* 0: none */
	uint32_t control_uid;
	uint32_t greeted;
	uint32_t answer;  /* the connection still waits for MSG_OK */
	uint32_t request; /* its id */
	uint32_t booted;
	uint64_t files_soft; /* RLIMIT_NOFILE for children */
	uint64_t term_since; /* CLOCK_MONOTONIC of a SIGTERM, ns; 0: none */
};

struct state_stream {
	int32_t fd; /* 0: closed */
	uint8_t open_line, lost_line, reserved[2];
	uint64_t lost; /* bytes dropped and not told yet */
};

struct state_task {
	uint64_t id;
	uint32_t is_exec;
	uint32_t phase; /* enum task_phase: ADDED, RUNNING or EXITED */
	uint32_t untold;
	int32_t pid, pidfd;
	uint32_t exit_slot;
	int32_t tty_pipe;
	int32_t log;
	int32_t fd[16]; /* by enum add_fd */
	char name[NAME_SIZE];
	struct exit_record record;
	uint64_t bytes, dropped, unreported;
	uint32_t line_max, reserved;
	struct state_stream stream[2];
};

#define STATE_REST 2u /* the rest of a torn record */

struct state_bytes {
	uint64_t task;
	uint32_t where; /* held bytes of stream 0 or 1, or STATE_REST */
	uint32_t reserved;
};

_Static_assert(sizeof(struct state_task) == 328, "state_task");
_Static_assert(sizeof(struct state_pod) == 40, "state_pod");

#endif
