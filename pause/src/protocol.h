/*
 * protocol.h - messages between criserver and a pause, version 1. ../PROTOCOL.md explains them.
 *
 * One SOCK_SEQPACKET packet is one message: struct msg_header and the body of its type.
 * Descriptors travel as SCM_RIGHTS in the order given here, at most MSG_MAX_FDS a packet; a request
 * with more sends the first ones ahead in FDS messages. Bodies only ever grow at their end: a
 * receiver ignores what it does not know and takes missing bytes as zero.
 */
#ifndef CRISERVER_PROTOCOL_H
#define CRISERVER_PROTOCOL_H

#include <stdint.h>

#define PROTOCOL_MAGIC 0x31455350u /* "PSE1" */
#define PROTOCOL_VERSION 1u

#define MSG_MAX_SIZE 1024u
#define MSG_MAX_FDS 200u
#define NAME_SIZE 96u /* container ids and names of kept descriptors, NUL-padded */

/* Descriptors that pause is born with. */
#define FD_CONTROL 3  /* the first controlling connection */
#define FD_LISTENER 4 /* listening socket, for criservers that come later */
#define FD_EXITS 5    /* exit records, mapped for the life of pause */

enum msg_type {
	/* requests: each is answered by MSG_OK (or the answer named) or MSG_FAILED with the same id */
	MSG_HELLO = 1,	 /* -> MSG_WELCOME */
	MSG_FDS = 2,	 /* no answer: descriptors for the request of the same id */
	MSG_BOOT = 3,	 /* once, before all but HELLO: pause runs a Program in itself. fds: program, its own */
	MSG_ADD = 4,	 /* register a container. fds: see enum add_fd */
	MSG_START = 5,	 /* -> MSG_STARTED. fds: program, [cgroup], [join], program's own */
	MSG_REOPEN = 6,	 /* fds: new log file */
	MSG_RESIZE = 7,	 /* window size of a terminal */
	MSG_REMOVE = 8,	 /* forget an exited or never started container */
	MSG_KEEP = 9,	 /* keep descriptors under a name (replaces). fds: those */
	MSG_DROP = 10,	 /* close kept descriptors */
	MSG_LIST = 11,	 /* -> MSG_TASK ..., MSG_KEPT ..., MSG_OK */
	MSG_REEXEC = 12, /* continue as another binary: same pid, children, descriptors. fds: the binary */
	MSG_ATTACH = 13, /* -> MSG_ATTACHED. copy a container's output. fds: by .fds, writing ends of pipes */
	MSG_DETACH = 14, /* -> MSG_DETACHED */
	MSG_END_STDIN = 15, /* close what is kept open for a container's stdin */

	/* answers and events */
	MSG_OK = 32,
	MSG_FAILED = 33,
	MSG_WELCOME = 34, /* fds: pidfd of pause */
	MSG_STARTED = 35, /* fds: pidfd of the process */
	MSG_EXITED = 36,  /* event, id 0 */
	MSG_TASK = 37,	  /* one container of a listing. fds: pidfd if running */
	MSG_KEPT = 38,	  /* one name of a listing; its descriptors, more packets of that name if many */
	MSG_ATTACHED = 39, /* fds: writing end of stdin, or the pty master, if asked for and there */
	MSG_DETACHED = 40,
};

struct msg_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type; /* enum msg_type */
	uint32_t id;   /* of the request; answers repeat it */
	uint32_t size; /* bytes of the body */
};

struct msg_hello {
	uint16_t min_version, max_version;
	uint32_t reserved;
};

struct msg_welcome {
	uint32_t pid; /* in pause's pid namespace */
	uint32_t max_tasks;
	uint32_t max_kept;
	uint32_t exit_slots;
	char build[32]; /* which pause this is, for people */
};

/* Descriptors of MSG_ADD: bit n of .fds says that the n-th is present; they come in this order. */
enum add_fd {
	ADD_LOG = 0,	 /* log file, append */
	ADD_STDOUT = 1,	 /* read end */
	ADD_STDERR = 2,	 /* read end */
	ADD_TTY = 3,	 /* pty master instead of stdout and stderr */
	ADD_STDIN = 4,	 /* write end, kept open for the container's stdin */
	ADD_EVENTS = 5,	 /* cgroup.events of the leaf */
	ADD_KILL = 6,	 /* cgroup.kill of the leaf */
	ADD_FREEZER = 7, /* v1: freezer.state of the leaf */
	ADD_PROCS = 8,	 /* cgroup.procs of the leaf (v1: in the freezer hierarchy) */
	ADD_OOM = 9,	 /* memory.events or memory.oom_control of the leaf */
	ADD_FD_COUNT = 10,
};

struct msg_add {
	uint64_t task; /* chosen by criserver, unique in the pod */
	char name[NAME_SIZE];
	uint32_t fds;	    /* bits of enum add_fd */
	uint32_t exit_slot; /* of FD_EXITS */
	uint32_t line_max;  /* bytes of content in one log record before it is split; 0: 16384 */
	uint32_t flags;
};

/* start.flags */
#define START_EXEC 1u	/* an additional process: an ephemeral task, its stdio is none of pause's business */
#define START_CGROUP 2u /* clone3 with CLONE_INTO_CGROUP; fds carry the directory */
#define START_JOIN 4u	/* born in the pid namespace of the given pidfd, by way of a joiner */
#define START_REAPER 8u /* no program: PID 1 of a new pid namespace that only reaps */

struct msg_start {
	uint64_t task;
	uint64_t clone_flags; /* CLONE_NEW* only */
	uint32_t flags;
	uint32_t reserved;
};

#define ATTACH_STDIN 1u /* attach.flags: the answer shall carry what the container's stdin is written by */

struct msg_attach {
	uint64_t task;
	uint64_t client; /* chosen by criserver, unique in the pod */
	uint32_t fds;	 /* 1: stdout, 2: stderr */
	uint32_t flags;
};

struct msg_detach {
	uint64_t client;
};

struct msg_detached {
	uint64_t lost; /* bytes that did not fit into the client's pipe, for which it was cut; 0: it was not */
};

struct msg_task_id { /* REOPEN, REMOVE, END_STDIN */
	uint64_t task;
};

struct msg_resize {
	uint64_t task;
	uint16_t rows, cols;
	uint32_t reserved;
};

struct msg_name { /* KEEP, DROP, KEPT */
	char name[NAME_SIZE];
};

/* failed.stage */
enum fail_stage {
	FAIL_REQUEST = 0, /* the message itself: errno says why */
	FAIL_CLONE = 1,	  /* clone3 or the joiner */
	FAIL_PROGRAM = 2, /* the Program's form: index is the offending instruction or relocation */
	FAIL_INSTR = 3,	  /* instruction index failed with errno */
	FAIL_KILLED = 4,  /* the child died before execve; errno holds the raw wait status */
};

struct msg_failed {
	uint32_t stage; /* enum fail_stage */
	uint32_t index;
	int32_t error; /* errno */
	uint32_t reserved;
};

struct msg_started {
	int32_t pid; /* in pause's pid namespace; 0 when it cannot be seen there */
	uint32_t reserved;
};

/* One exit record. FD_EXITS is an array of these, 64 bytes each, written in memory before anybody is told. */
struct exit_record {
	uint64_t task;	     /* 0: free */
	uint64_t time_ns;    /* CLOCK_REALTIME */
	uint64_t oom_kills;  /* the leaf's counter */
	uint64_t dropped;    /* log bytes dropped */
	int32_t status;	     /* raw wait status */
	uint32_t flags;	     /* EXIT_* */
	uint32_t written;    /* EXIT_WRITTEN, stored last */
	uint32_t reserved[5];
};

#define EXIT_WRITTEN 0x54495845u /* "EXIT" */
#define EXIT_POPULATED 1u	 /* processes of the leaf were still dying when this was recorded */
#define EXIT_LOG_BEHIND 2u	 /* the log had not taken everything yet */

struct msg_exited {
	struct exit_record record; /* .task also for execs, which have no record on disk */
};

enum task_state { TASK_ADDED = 1, TASK_RUNNING = 2, TASK_EXITED = 3, TASK_STARTING = 4 };

struct msg_task {
	uint64_t task;
	char name[NAME_SIZE];
	uint32_t state; /* enum task_state */
	int32_t pid;
	uint32_t fds; /* bits of enum add_fd that are open */
	uint32_t flags;
	struct exit_record record;
	uint64_t log_bytes, log_dropped;
};

_Static_assert(sizeof(struct msg_header) == 16, "msg_header");
_Static_assert(sizeof(struct exit_record) == 64, "exit_record");
_Static_assert(sizeof(struct msg_add) == 120, "msg_add");
_Static_assert(sizeof(struct msg_task) == 200, "msg_task");
_Static_assert(sizeof(struct msg_attach) == 24, "msg_attach");

#endif
