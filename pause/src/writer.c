/*
 * writer.c - the second thread: it alone reads the containers' pipes and touches files, so that a stalled
 * disk delays nothing else. The supervisor asks through bits in memory and an eventfd, and is told the same
 * way; it never waits. If one write hangs too long the supervisor empties full pipes itself.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "pause.h"

#define TURN_READS 2	   /* of 64 KiB for each stream: 256 KiB a container a turn */
#define DRAIN_READS 256	   /* at an exit: more than a pipe can hold */
#define IDLE_MS 1000
#define DISCARDS 64

bool writer_runs, writer_stuck;

static int epoll, wake, tell;	  /* eventfds: to the writer, to the supervisor */
static int discards[2];		  /* pipe of descriptor numbers to close */
static _Atomic uint32_t asked_words[MAX_TASKS / 32], told_words[MAX_TASKS / 32];
static _Atomic uint64_t busy_since; /* now() when a write began, 0: none */
static _Atomic bool watched;	    /* the supervisor's timer looks at it */
static _Atomic enum { RUNS, PARK_ASKED, PARKED } state; /* the writer's only change is from PARK_ASKED to PARKED */

#ifdef PAUSE_SANITIZE
static char stack[1 << 20] __attribute__((aligned(4096)));
#else
COLD static char stack[16 << 10] __attribute__((aligned(64)));
#endif

enum { KEY_WAKE = MAX_TASKS * 2, KEY_DISCARD };

static void ring(int eventfd)
{
	uint64_t one = 1;
	(void)sys(SYS_write, eventfd, &one, sizeof one); /* EAGAIN: it is rung already */
}

/* ---- the writer's side ---- */

void writer_busy(bool busy)
{
	if (!busy) {
		atomic_store(&busy_since, 0);
		return;
	}
	atomic_store(&busy_since, now());
	if (!atomic_exchange(&watched, true))
		ring(tell); /* the supervisor sets its timer */
}

static void told(uint32_t index, uint32_t what)
{
	atomic_fetch_or(&log_at(index)->told, what);
	atomic_fetch_or(&told_words[index / 32], 1u << index % 32);
	ring(tell);
}

static void close_file(int fd)
{
	writer_busy(true);
	(void)sys(SYS_close, fd);
	writer_busy(false);
}

static void open_streams(uint32_t index)
{
	for (uint32_t s = 0; s < 2; s++) {
		int fd = atomic_load(&log_at(index)->stream[s].fd);
		struct epoll_event e = {.events = EPOLLIN, .data.u64 = index * 2 + s};
		if (fd == 0)
			continue;
		long err = sys(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, fd, &e);
		if (sys_failed(err) && err != -EEXIST)
			log_close_stream(index, s, epoll); /* not a thing that can be read from piecewise */
	}
}

/* Reads until nothing is left, within bounds. */
static void read_stream(uint32_t index, uint32_t s, uint32_t reads)
{
	struct log *l = log_at(index);
	enum log_turn turn = LOG_MORE;
	while (reads-- > 0 && turn == LOG_MORE && atomic_load(&l->stream[s].fd) != 0)
		turn = log_turn(index, s);
	if (turn == LOG_END)
		log_close_stream(index, s, epoll);
}

static void serve(uint32_t index)
{
	struct log *l = log_at(index);
	uint32_t asked = atomic_exchange(&l->asked, 0);
	if ((asked & LOG_OPEN) != 0)
		open_streams(index);
	if ((asked & LOG_SWITCH) != 0) {
		int fd = atomic_exchange(&l->newfd, 0);
		if (fd != 0) {
			int old = l->fd;
			l->fd = fd;
			log_forget_rest(l); /* of a record in the old file */
			l->retry = 0;
			told(index, LOG_SWITCH);
			if (old != 0)
				close_file(old);
		}
	}
	for (uint32_t s = 0; s < 2 && (asked & (LOG_DRAIN | LOG_CLOSE)) != 0; s++) {
		read_stream(index, s, DRAIN_READS);
		log_end_line(index, s);
		attach_end(index, s); /* whoever else has the stream open is none of the container's */
	}
	if ((asked & LOG_DRAIN) != 0)
		told(index, LOG_DRAIN);
	if ((asked & LOG_CLOSE) != 0) {
		for (uint32_t s = 0; s < 2; s++)
			log_close_stream(index, s, epoll);
		if (l->fd != 0)
			close_file(l->fd);
		l->fd = 0;
		told(index, LOG_CLOSE);
	}
}

static bool close_discarded(void)
{
	int fds[DISCARDS];
	long n = sys(SYS_read, discards[0], fds, sizeof fds);
	for (long i = 0; i < n / (long)sizeof *fds; i++)
		close_file(fds[i]);
	return n > 0;
}

/* Everything that was read is written: stop here until the supervisor says to go on. */
static void park(void)
{
	uint64_t rung;
	int asked = PARK_ASKED;
	while (close_discarded())
		;
	if (!atomic_compare_exchange_strong(&state, &asked, PARKED))
		return;
	ring(tell);
	while (atomic_load(&state) == PARKED)
		(void)sys(SYS_read, wake, &rung, sizeof rung); /* blocks */
}

static void serve_all(void)
{
	uint64_t rung;
	(void)sys(SYS_read, wake, &rung, sizeof rung);
	if (atomic_load(&state) == PARK_ASKED)
		park();
	for (uint32_t w = 0; w < MAX_TASKS / 32; w++)
		for (uint32_t bits = atomic_exchange(&asked_words[w], 0); bits != 0; bits &= bits - 1)
			serve(w * 32 + (uint32_t)__builtin_ctz(bits));
}

static void *writer(void *unused)
{
	for (;;) {
		struct epoll_event events[16];
		long n = sys(SYS_epoll_pwait, epoll, events, 16, IDLE_MS, 0, 8);
		if (n == 0) {
			log_idle();
			n = sys(SYS_epoll_pwait, epoll, events, 16, -1, 0, 8);
		}
		for (long i = 0; i < n; i++) {
			uint32_t key = (uint32_t)events[i].data.u64;
			if (key == KEY_WAKE)
				serve_all();
			else if (key == KEY_DISCARD)
				(void)close_discarded();
			else
				read_stream(key / 2, key % 2, TURN_READS);
		}
	}
	return unused;
}

/* ---- the supervisor's side ---- */

int writer_start(void)
{
	struct epoll_event on_wake = {.events = EPOLLIN, .data.u64 = KEY_WAKE}, on_discard = {.events = EPOLLIN, .data.u64 = KEY_DISCARD};
	pthread_attr_t attributes;
	pthread_t thread;
	if (writer_runs)
		return 0;
	if (epoll == 0) {
		long e = sys(SYS_epoll_create1, EPOLL_CLOEXEC), w = sys(SYS_eventfd2, 0, EFD_CLOEXEC), t = sys(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (e < 0 || w < 0 || t < 0 || sys_failed(sys(SYS_pipe2, discards, EFD_CLOEXEC | EFD_NONBLOCK)))
			return -EMFILE;
		if (sys_failed(sys(SYS_epoll_ctl, e, EPOLL_CTL_ADD, w, &on_wake)) || sys_failed(sys(SYS_epoll_ctl, e, EPOLL_CTL_ADD, discards[0], &on_discard)) ||
		    watch((int)t, EPOLLIN, EV_WRITER, 0) != 0)
			return -ENOMEM;
		epoll = (int)e;
		wake = (int)w;
		tell = (int)t;
	}
	log_protect();
	if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstack(&attributes, stack, sizeof stack) != 0)
		return -EINVAL;
	int err = pthread_create(&thread, &attributes, writer, NULL);
	if (err != 0)
		return -err;
	writer_runs = true;
	return 0;
}

void writer_ask(uint32_t index, uint32_t what)
{
	atomic_fetch_or(&log_at(index)->asked, what);
	atomic_fetch_or(&asked_words[index / 32], 1u << index % 32);
	ring(wake);
}

static void set_stream(struct stream *st, int fd)
{
	if (fd == 0)
		return;
	(void)set_nonblocking(fd); /* an end of its own: the container's is another open file */
	long size = sys(SYS_fcntl, fd, F_GETPIPE_SZ);
	st->capacity = sys_failed(size) ? 0 : (uint32_t)size;
	atomic_store(&st->fd, fd);
}

/* Hands the pipes of a log over to the writer. */
void writer_prepare(uint32_t index, int out, int err, uint32_t line_max)
{
	struct log *l = log_at(index);
	l->line_max = line_max;
	set_stream(&l->stream[0], out);
	set_stream(&l->stream[1], err);
}

bool writer_open_streams(uint32_t index)
{
	return atomic_load(&log_at(index)->stream[0].fd) != 0 || atomic_load(&log_at(index)->stream[1].fd) != 0;
}

uint32_t writer_told(uint32_t word)
{
	return atomic_exchange(&told_words[word], 0);
}

void writer_heard(void)
{
	uint64_t rung;
	(void)sys(SYS_read, tell, &rung, sizeof rung);
	if (atomic_load(&watched))
		timer_within(STALL_BOUND / 5);
}

/* A pipe that is nearly full blocks its container: drop what is in it. */
static void empty_pipe(uint32_t index, uint32_t s)
{
	COLD static char sink[16384];
	struct log *l = log_at(index);
	struct stream *st = &l->stream[s];
	int have = 0, fd;
	if (!log_reading(l))
		return;
	fd = atomic_load(&st->fd);
	if (fd != 0 && sys(SYS_ioctl, fd, FIONREAD, &have) == 0 && (uint32_t)have >= st->capacity / 2) {
		while (have > 0) {
			long n = sys(SYS_read, fd, sink, sizeof sink);
			if (n <= 0)
				break;
			have -= (int)n;
			attach_copy(index, s, sink, (uint32_t)n);
			atomic_fetch_add(&st->lost, (uint64_t)n);
		}
	}
	log_read_done(l);
}

/* Only while the writer writes: notices that it hangs in one write, and does without it meanwhile. */
void writer_tick(void)
{
	if (!atomic_exchange(&watched, false))
		return;
	uint64_t began = atomic_load(&busy_since);
	writer_stuck = began != 0 && now() - began >= STALL_BOUND;
	if (began == 0)
		return; /* the next write rings again */
	atomic_store(&watched, true);
	timer_within(writer_stuck ? 20 * MS : STALL_BOUND / 5);
	for (uint32_t i = 0; i < tasks_high && writer_stuck; i++) {
		empty_pipe(i, 0);
		empty_pipe(i, 1);
	}
}

void writer_discard(int fd)
{
	if (!writer_runs || sys(SYS_write, discards[1], &fd, sizeof fd) != sizeof fd)
		(void)sys(SYS_close, fd);
}

/* Makes the writer stop between two lines. True when it has; an answer of false is repeated by EV_WRITER. */
bool writer_park(void)
{
	int runs = RUNS;
	if (writer_runs && atomic_compare_exchange_strong(&state, &runs, PARK_ASKED))
		ring(wake);
	return !writer_runs || atomic_load(&state) == PARKED;
}

void writer_go_on(void)
{
	if (atomic_exchange(&state, RUNS) == PARKED)
		ring(wake);
}
