/*
 * leaf.c - emptying a container's cgroup leaf through descriptors: cgroup.kill where it exists, else the
 * freezer and cgroup.procs. Every step is short; task_advance comes back until the leaf is empty.
 */
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>

#include "pause.h"

/* Reads a whole small kernel file. Returns its length, 0 on error; the buffer is terminated. */
static size_t read_file(int fd, char *buf, size_t size)
{
	long n = sys(SYS_pread64, fd, buf, size - 1, 0);
	if (sys_failed(n))
		n = 0;
	buf[n] = 0;
	return (size_t)n;
}

/* The number after a key at the beginning of a line. */
static bool value_of(const char *text, const char *key, uint64_t *value)
{
	size_t len = strlen(key);
	for (const char *line = text; line != NULL && *line != 0; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, len) != 0 || line[len] != ' ')
			continue;
		*value = 0;
		for (const char *c = line + len + 1; *c >= '0' && *c <= '9'; c++)
			*value = *value * 10 + (uint64_t)(*c - '0');
		return true;
	}
	return false;
}

uint64_t leaf_oom_kills(const struct task *t)
{
	char text[2048];
	uint64_t n = 0;
	if (t->fd[ADD_OOM] != 0 && read_file(t->fd[ADD_OOM], text, sizeof text) > 0)
		(void)value_of(text, "oom_kill", &n);
	return n;
}

static void put(int fd, const char *word)
{
	(void)sys(SYS_write, fd, word, strlen(word)); /* on failure the leaf stays populated, and that is recorded */
}

/* A pidfd of a process that has not exited yet, or 0. */
static int living(long pid)
{
	long fd = sys(SYS_pidfd_open, pid, 0);
	struct pollfd p = {.fd = (int)fd, .events = POLLIN};
	if (sys_failed(fd))
		return 0;
	if (sys(SYS_ppoll, &p, 1, &(struct timespec){0}, 0, 8) == 0)
		return (int)fd;
	(void)sys(SYS_close, fd);
	return 0;
}

/*
 * Looks at every process of cgroup.procs, and kills it if asked to. Returns how many live. v1 keeps a list
 * for a second after it was last read: a second reading says who was there at the first. So the first
 * one happens while the leaf is frozen and the list cannot change, later ones only see who of it is left.
 */
static uint32_t each_process(int procs, bool kill)
{
	char text[1024];
	uint32_t count = 0;
	long pid = 0, n;
	for (long at = 0; (n = sys(SYS_pread64, procs, text, sizeof text, at)) > 0; at += n) {
		for (long i = 0; i < n; i++) {
			if (text[i] >= '0' && text[i] <= '9') {
				pid = (pid * 10 + (text[i] - '0')) & 0xffffff;
				continue;
			}
			int fd = pid > 0 ? living(pid) : 0;
			if (fd != 0 && kill)
				(void)sys(SYS_pidfd_send_signal, fd, SIGKILL, 0, 0);
			if (fd != 0)
				(void)sys(SYS_close, fd);
			count += fd != 0;
			pid = 0;
		}
	}
	return count;
}

/* A file that is gone belongs to a leaf that is gone. */
static bool empty(const struct task *t)
{
	char text[256];
	uint64_t populated = 0;
	if (t->fd[ADD_EVENTS] == 0)
		return t->fd[ADD_PROCS] == 0 || each_process(t->fd[ADD_PROCS], false) == 0;
	(void)read_file(t->fd[ADD_EVENTS], text, sizeof text);
	(void)value_of(text, "populated", &populated);
	return populated == 0;
}

static bool frozen(const struct task *t)
{
	char text[32];
	(void)read_file(t->fd[ADD_FREEZER], text, sizeof text);
	return strncmp(text, "FROZEN", 6) == 0;
}

static void kill_begin(struct task *t)
{
	t->kill_step = KILL_WAIT;
	if (t->fd[ADD_EVENTS] != 0)
		(void)watch(t->fd[ADD_EVENTS], EPOLLPRI, EV_LEAF, t->index); /* else the tick looks */
	if (t->fd[ADD_KILL] != 0) {
		put(t->fd[ADD_KILL], "1");
	} else if (t->fd[ADD_FREEZER] != 0) {
		put(t->fd[ADD_FREEZER], "FROZEN");
		t->kill_step = KILL_FREEZING;
	} else if (t->fd[ADD_PROCS] != 0) {
		t->kill_step = KILL_EACH;
	}
}

/* One step; true when the leaf is empty or cannot be watched. */
bool leaf_gone(struct task *t)
{
	if (t->kill_step == KILL_BEGIN) {
		if (t->fd[ADD_EVENTS] != 0 && empty(t))
			return true;
		kill_begin(t);
	}
	if (t->kill_step == KILL_FREEZING) {
		if (!frozen(t) && now() - t->since < EMPTY_BOUND / 2)
			return false;
		if (t->fd[ADD_PROCS] != 0)
			(void)each_process(t->fd[ADD_PROCS], true);
		put(t->fd[ADD_FREEZER], "THAWED"); /* the killed die only then */
		t->kill_step = KILL_WAIT;
	} else if (t->kill_step == KILL_EACH) {
		(void)each_process(t->fd[ADD_PROCS], true);
	}
	return empty(t);
}
