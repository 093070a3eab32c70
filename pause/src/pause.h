/*
 * pause.h - what the files of pause share. Two threads: the supervisor, and the writer (log.c and one half of
 * writer.c), which is the only one that touches regular files. All memory is static; a descriptor of 0 in a
 * table means "none", because 0 to 2 are always taken.
 */
#ifndef CRISERVER_PAUSE_H
#define CRISERVER_PAUSE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/resource.h>

#include "program.h"
#include "protocol.h"
#include "sys.h"

#define MAX_TASKS 128u	 /* containers */
#define MAX_EXECS 128u	 /* additional processes that live or whose exit nobody took yet */
#define MAX_NAMES 256u	 /* names of kept descriptors */
#define MAX_KEPT 4096u	 /* kept descriptors */
#define MAX_PENDING 1088u /* descriptors of one request */
#define MAX_ATTACHED 32u	 /* clients that are attached to containers of the pod */
#define MAX_LINE 65536u	 /* bytes of content in one log record */
#define DEFAULT_LINE 16384u

#define MS 1000000ull /* nanoseconds */
#define EMPTY_BOUND (2000 * MS)	 /* for a leaf to become empty after its first process has exited */
#define DRAIN_BOUND (250 * MS)	 /* for the log to take what an exited container had written */
#define REOPEN_BOUND (2000 * MS) /* for the writer to switch to a new file */
#define STALL_BOUND (5000 * MS)	 /* of one write, before pipes are emptied without it */
#define QUIET_BOUND (5000 * MS)	 /* for starts and exits to end before another binary takes over */
#define TERM_BOUND (90000 * MS)	 /* for containers to end after a SIGTERM, so that pause ends too: systemd kills no later */

/* Seldom used memory stays away from the few pages that are always used. */
#if defined(__x86_64__) && !defined(PAUSE_SANITIZE)
#define COLD __attribute__((section(".lbss")))
#else
#define COLD
#endif

/* ---- loop.c ---- */

enum event_kind { EV_CONTROL, EV_LISTENER, EV_TIMER, EV_WRITER, EV_PIDFD, EV_REPORT, EV_LEAF, EV_TTY, EV_TTY_PIPE, EV_TERM };

extern int pause_pidfd;
extern uint32_t pause_pid;

uint64_t now(void);	 /* CLOCK_MONOTONIC, ns */
uint64_t wall_time(void); /* CLOCK_REALTIME, ns */
int watch(int fd, uint32_t events, enum event_kind kind, uint32_t index);
void rewatch(int fd, uint32_t events, enum event_kind kind, uint32_t index);
void unwatch(int fd);
void unwatch_close(int *fd); /* and sets it to 0 */
int set_nonblocking(int fd);
void timer_within(uint64_t ns);
_Noreturn void loop(void);
_Noreturn void die(int status);

/* ---- term.c: SIGTERM ---- */

extern uint64_t term_since; /* now() of the last SIGTERM; 0: none that counts */

int term_init(void);
void term_event(void);
void term_look(void);

/* ---- control.c: the connection ---- */

/* Who made a request: its id, and which connection it came by. */
struct caller {
	uint32_t id, serial;
};

#define ANSWERED 1 /* instead of 0 or -errno: a request that answers by itself, now or later */

struct request {
	struct caller from;
	uint32_t type, nfds;
	union {
		char bytes[MSG_MAX_SIZE]; /* zero after what came */
		struct msg_hello hello;
		struct msg_add add;
		struct msg_start start;
		struct msg_task_id task;
		struct msg_resize resize;
		struct msg_name name;
		struct msg_attach attach;
		struct msg_detach detach;
	} body;
	int *fds; /* 0 once somebody owns it; what is left is closed when the request is done */
};

extern int listener, control;
extern uint32_t control_serial; /* which connection this is */
extern bool control_greeted;
extern uint32_t control_uid;

int control_init(bool adopted);
int control_identify(void);
void control_event(uint32_t events);
void control_accept(void);
void control_resume(void);			  /* read requests again */
void control_tick(void);
bool control_blocked(void);
int control_send(uint32_t type, uint32_t id, const void *body, uint32_t size, const int *fds, uint32_t nfds);
void reply(struct caller to, uint32_t type, const void *body, uint32_t size, int fd);
void reply_failed(struct caller to, enum fail_stage stage, uint32_t index, int error);

/* ---- request.c: what each message means ---- */

void request_serve(struct request *r, int err);
void list_go_on(void);
extern bool listing;

/* ---- program.c ---- */

enum report_phase { REPORT_RUNS, REPORT_EXECS, REPORT_ENDED, REPORT_FAILED };

/* In memory shared with the child: the index is stored before each instruction. */
struct report {
	volatile uint32_t phase; /* enum report_phase */
	volatile uint32_t stage; /* enum fail_stage, in REPORT_FAILED */
	volatile uint32_t index;
	volatile int32_t error;
};

struct program {
	struct program_header *head;
	struct program_instr *instrs;
	struct program_reloc *relocs;
	char *blob;
	size_t mapped; /* bytes */
};

int program_map(int fd, struct program *p);
void program_unmap(struct program *p);
int program_check(const struct program *p, uint32_t nfds, struct report *r);
int program_run(const struct program *p, const int *fds, struct report *r);
extern bool booted;
int boot(struct request *r);

/* ---- start.c ---- */

extern struct rlimit files_limit; /* RLIMIT_NOFILE that pause was born with, and its children shall have */

struct task;
int starts_init(void);
int start(struct request *r);
void start_report(struct task *t);
void start_died(struct task *t, int32_t status);

/* ---- task.c ---- */

/* Numbers are part of the state that a re-executed pause reads. */
enum task_phase {
	PHASE_FREE,
	PHASE_ADDED,
	PHASE_STARTING,
	PHASE_RUNNING,
	PHASE_KILLING,	/* the first process is gone, the rest of the leaf is being killed */
	PHASE_DRAINING, /* the log takes what is left */
	PHASE_EXITED,
	PHASE_CLOSING, /* removed, the writer still has its files */
};

enum kill_step { KILL_BEGIN, KILL_FREEZING, KILL_EACH, KILL_WAIT };

struct task {
	uint64_t id;
	uint8_t phase;	   /* enum task_phase */
	uint8_t kill_step; /* enum kill_step */
	uint16_t index;	   /* containers come first, then execs */
	bool untold;	   /* MSG_EXITED is owed */
	bool tty_full;	   /* the terminal waits for the writer */
	bool reopening;	   /* a REOPEN waits for the writer */
	int pid, pidfd;
	int start_pipe; /* in PHASE_STARTING: ends with execve */
	struct caller starter, reopener;
	uint64_t reopen_since;
	uint64_t since; /* now() when the phase began */
	uint32_t exit_slot;
	int fd[ADD_FD_COUNT]; /* log, stdout and stderr are the writer's and not here */
	int tty_pipe;	      /* to the writer */
	struct exit_record record;
	char name[NAME_SIZE];
};

extern uint32_t tasks_high, execs_high; /* indices ever used, one past the last */
extern struct exit_record *exits;
extern uint32_t exit_slots;

int exits_init(void);
struct task *next_task(uint32_t *i);
struct task *task_find(uint64_t id);
struct task *task_new(uint64_t id, bool exec);
void task_free(struct task *t);
int task_add(struct request *r);
int task_remove(uint64_t id);
int task_reopen(struct request *r);
int task_resize(const struct msg_resize *m);
int task_end_stdin(uint64_t id);
bool task_reap(struct task *t, int32_t *status); /* false: it lives */
void task_exited(struct task *t, int32_t status);
void task_advance(struct task *t);
void tasks_tick(void);
void tasks_told(void); /* the writer has told something */
void exits_tell(void); /* to a new connection */
void exit_told(uint64_t id);
enum task_state task_public(const struct task *t);
uint32_t task_open_fds(const struct task *t);

/* ---- leaf.c: killing what is left in a cgroup leaf ---- */

bool leaf_gone(struct task *t);
uint64_t leaf_oom_kills(const struct task *t);

/* ---- terminal.c ---- */

int terminal_open(struct task *t, int master, int *output);
int terminal_adopt(struct task *t);
void terminal_event(struct task *t);
void terminal_room(struct task *t);
void terminal_drain(struct task *t);

/* ---- attach.c: copies of output ---- */

int attach(struct request *r);
int detach(const struct request *r);
void attach_copy(uint32_t index, uint32_t stream, const char *data, uint32_t size);
void attach_end(uint32_t index, uint32_t stream);
void attach_forget_all(void);

/* ---- keep.c ---- */

struct kept_fd {
	int fd;
	uint32_t name; /* index */
};

struct kept_name {
	char name[NAME_SIZE]; /* "": free */
};

extern uint32_t names_high;

int keep(const char *name, int *fds, uint32_t nfds, bool more);
int drop(const char *name);
uint32_t kept_next(uint32_t name, uint32_t *at, int *fds, uint32_t max);

/* ---- log.c: logs as the writer keeps them ---- */

#define LOG_OPEN 1u   /* asked: look at the pipes */
#define LOG_SWITCH 2u /* asked: go on in newfd. told: done */
#define LOG_DRAIN 4u  /* asked: take what the pipes hold and end the last line. told: done */
#define LOG_CLOSE 8u  /* asked: close everything. told: done */

struct stream {
	_Atomic int fd;	      /* read end; 0: closed. Changed and read with log.reading held */
	uint32_t held;	      /* bytes of an unfinished line, in writer_held */
	uint32_t capacity;    /* of the pipe, bytes */
	bool open_line;	      /* the last record of this stream was a partial one */
	bool lost_line;	      /* bytes were dropped: skip to the next line */
	uint64_t lost_seen;   /* of lost */
	_Atomic uint64_t lost; /* bytes that the supervisor took out of the pipe and dropped */
};

struct log {
	_Atomic uint32_t asked, told; /* LOG_* */
	_Atomic int newfd;	      /* 0: none; who takes it out owns it */
	atomic_flag reading;	      /* held while somebody reads the pipes or closes them */
	_Atomic uint64_t bytes, dropped;
	_Atomic int fd; /* 0: none, everything is discarded */
	uint32_t line_max;
	uint32_t rest;	     /* bytes of a record whose beginning is in the file, in writer_rest */
	uint64_t retry;	     /* 0, or the last write failed: now() from which it is tried again */
	uint64_t unreported; /* bytes dropped and not told in the log yet */
	struct stream stream[2];
};

char *log_held(uint32_t index, uint32_t stream); /* MAX_LINE bytes */
char *log_rest(uint32_t index);			 /* LOG_RECORD bytes */
#define LOG_HEADER 40u /* "2006-01-02T15:04:05.999999999Z stdout F " */
#define LOG_RECORD (LOG_HEADER + MAX_LINE + 8)
void log_protect(void);				     /* keeps the buffers out of children */
enum log_turn { LOG_MORE, LOG_EMPTY, LOG_END };
enum log_turn log_turn(uint32_t index, uint32_t s);
void log_forget_rest(struct log *l);
void log_end_line(uint32_t index, uint32_t s);
void log_close_stream(uint32_t index, uint32_t s, int epoll);
void log_idle(void); /* gives memory back */
bool log_reading(struct log *l); /* try to get it */
void log_read_done(struct log *l);
void put_digits(char *at, uint32_t n, uint64_t value);

/* ---- writer.c: the thread that touches files ---- */

extern bool writer_runs;
extern bool writer_stuck;

int writer_start(void);
void writer_prepare(uint32_t index, int out, int err, uint32_t line_max); /* then ask for LOG_OPEN */
bool writer_open_streams(uint32_t index);
void writer_ask(uint32_t index, uint32_t what);
uint32_t writer_told(uint32_t word); /* bits of 32 logs that have told something */
void writer_heard(void);
void writer_tick(void);
void writer_discard(int fd); /* closes it where closing may take time */
void writer_busy(bool busy); /* around what may block; for the writer's own use */
bool writer_park(void);
void writer_go_on(void);

/* ---- the tables ---- */

#define ROW_NAMES (MAX_NAMES / MAX_TASKS)
#define ROW_KEPT (MAX_KEPT / MAX_TASKS)

/* One row of all tables: they lie together, so that a small pod uses few pages. */
struct row {
	struct task task;
	struct log log; /* of task */
	struct task exec;
	struct kept_name names[ROW_NAMES];
	struct kept_fd fds[ROW_KEPT];
};

extern struct tables {
	struct row first;
	int pending[MAX_PENDING]; /* descriptors that came for the next request */
	struct row more[MAX_TASKS - 1];
} tables;

_Static_assert(MAX_EXECS == MAX_TASKS, "one of each in a row");

static inline struct row *row(uint32_t i)
{
	return i == 0 ? &tables.first : &tables.more[i - 1];
}

static inline struct task *task_at(uint32_t i)
{
	return i < MAX_TASKS ? &row(i)->task : &row(i - MAX_TASKS)->exec;
}

static inline bool is_exec(const struct task *t)
{
	return t->index >= MAX_TASKS;
}

static inline struct log *log_at(uint32_t i)
{
	return &row(i)->log;
}

static inline struct kept_name *name_at(uint32_t i)
{
	return &row(i / ROW_NAMES)->names[i % ROW_NAMES];
}

static inline struct kept_fd *kept_at(uint32_t i)
{
	return &row(i / ROW_KEPT)->fds[i % ROW_KEPT];
}

/* ---- reexec.c ---- */

extern bool reexec_pending;

int reexec_begin(struct request *r);
void reexec_go_on(void);
int reexec_restore(int fd);

#endif
