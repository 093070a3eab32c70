/*
 * terminal.c - output of containers with a terminal: the supervisor moves it from the master of the pty
 * into a pipe that the writer reads like any other, and stops reading while that pipe is full.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>

#include "pause.h"

#define PIECE 4096u /* what a pipe with room takes whole */

/* Edge-triggered: a master without a slave hangs up, but a container may open the slave again. */
#define MASTER_EVENTS (EPOLLIN | EPOLLET)

static int listen_to(struct task *t, int master, int pipe)
{
	int err = watch(pipe, 0, EV_TTY_PIPE, t->index);
	return err != 0 ? err : watch(master, MASTER_EVENTS, EV_TTY, t->index);
}

int terminal_open(struct task *t, int master, int *output)
{
	int ends[2];
	int err = set_nonblocking(master);
	if (err == 0)
		err = (int)sys(SYS_pipe2, ends, O_CLOEXEC | O_NONBLOCK);
	if (err != 0)
		return err;
	err = listen_to(t, master, ends[1]);
	if (err != 0) {
		unwatch_close(&ends[1]);
		(void)sys(SYS_close, ends[0]);
		return err;
	}
	t->tty_pipe = ends[1];
	*output = ends[0];
	return 0;
}

/* The same after a re-execution: the other end of the pipe is known to the log. */
int terminal_adopt(struct task *t)
{
	return listen_to(t, t->fd[ADD_TTY], t->tty_pipe);
}

/* Moves output until there is none, or the pipe is full. */
void terminal_event(struct task *t)
{
	char piece[PIECE];
	for (uint32_t moved = 0; !t->tty_full && t->tty_pipe != 0; moved += PIECE) {
		struct pollfd room = {.fd = t->tty_pipe, .events = POLLOUT};
		if (moved >= 64 * PIECE) { /* others want to be served too */
			rewatch(t->fd[ADD_TTY], MASTER_EVENTS, EV_TTY, t->index);
			return;
		}
		(void)sys(SYS_ppoll, &room, 1, &(struct timespec){0}, 0, 8);
		if ((room.revents & POLLOUT) == 0) {
			t->tty_full = true;
			rewatch(t->tty_pipe, EPOLLOUT, EV_TTY_PIPE, t->index);
			return;
		}
		long n = sys(SYS_read, t->fd[ADD_TTY], piece, sizeof piece);
		if (n <= 0) /* EAGAIN, or EIO: no slave is open */
			return;
		(void)sys(SYS_write, t->tty_pipe, piece, n); /* there is room; EPIPE: nobody logs */
	}
}

/* The writer has made room, or has closed its end. */
void terminal_room(struct task *t)
{
	t->tty_full = false;
	rewatch(t->tty_pipe, 0, EV_TTY_PIPE, t->index);
	terminal_event(t);
}

/* The container is gone: what the terminal still holds goes into the pipe, which then ends. */
void terminal_drain(struct task *t)
{
	if (t->tty_pipe == 0)
		return;
	t->tty_full = false;
	terminal_event(t);
	unwatch_close(&t->tty_pipe);
}
