/*
 * log.c - what the writer does with the output of containers: whole lines become records of the CRI log
 * format, "<RFC 3339 time> <stdout|stderr> <F|P> <content>". A line is split (P) only when it is longer than
 * line_max, or ends without a newline. A record is never torn: if the file takes only its beginning, the
 * rest is kept and written first when the file takes more. What cannot be written is dropped and counted.
 */
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>

#include "pause.h"

#define PAGE 4096u
#define READ_SIZE 65536u
#define OUT_SIZE (4 * READ_SIZE)
#define SLACK 64u		 /* copies may run over by less than this */
#define RETRY_AFTER (100 * MS) /* a failing file is left alone for so long */

/* Pages here exist only while they are used; children never see them. */
struct buffers {
	char held[MAX_TASKS][2][MAX_LINE];
	char rest[MAX_TASKS][LOG_RECORD];
	char in[MAX_LINE + READ_SIZE + SLACK]; /* the held part of a line ends where the read begins */
	char out[OUT_SIZE + SLACK];
};

/* Aligned by hand: an aligned section would not begin on the page that the small variables end on. */
COLD static char unaligned[sizeof(struct buffers) + PAGE];
#define memory (*(struct buffers *)(((uintptr_t)unaligned + PAGE - 1) & ~(uintptr_t)(PAGE - 1)))

static uint32_t out_size;
static char header[LOG_HEADER + 1] = "0000-00-00T00:00:00.000000000Z stdout F ";
static int64_t header_second = -1;
static bool dirty; /* buffers have been used */
static uint8_t held_dirty[MAX_TASKS];

#define AT_STREAM 31 /* offsets in header */
#define AT_TAG 38

char *log_held(uint32_t index, uint32_t stream)
{
	return memory.held[index][stream];
}

char *log_rest(uint32_t index)
{
	return memory.rest[index];
}

void log_protect(void)
{
	(void)sys(SYS_madvise, &memory, sizeof memory & ~(size_t)(PAGE - 1), MADV_DONTFORK); /* only faster */
}

void log_idle(void)
{
	if (!dirty)
		return;
	dirty = false;
	uintptr_t from = ((uintptr_t)memory.in + PAGE - 1) & ~(uintptr_t)(PAGE - 1), to = (uintptr_t)(&memory + 1) & ~(uintptr_t)(PAGE - 1);
	(void)sys(SYS_madvise, from, to - from, MADV_DONTNEED);
	for (uint32_t i = 0; i < MAX_TASKS; i++) {
		if (held_dirty[i] == 0 || log_at(i)->stream[0].held != 0 || log_at(i)->stream[1].held != 0)
			continue;
		(void)sys(SYS_madvise, memory.held[i], sizeof memory.held[i], MADV_DONTNEED);
		held_dirty[i] = 0;
	}
}

bool log_reading(struct log *l)
{
	return !atomic_flag_test_and_set_explicit(&l->reading, memory_order_acquire);
}

void log_read_done(struct log *l)
{
	atomic_flag_clear_explicit(&l->reading, memory_order_release);
}

/* ---- records ---- */

void put_digits(char *at, uint32_t n, uint64_t value)
{
	while (n > 0) {
		at[--n] = (char)('0' + value % 10);
		value /= 10;
	}
}

/* The date of a day number since 1970, in the proleptic Gregorian calendar. */
static void put_date(char *at, int64_t day)
{
	int64_t z = day + 719468, era = z / 146097, of_era = z - era * 146097;
	int64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	int64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	int64_t mp = (5 * of_year + 2) / 153, d = of_year - (153 * mp + 2) / 5 + 1;
	int64_t m = mp < 10 ? mp + 3 : mp - 9, y = year_of_era + era * 400 + (m <= 2);
	put_digits(at, 4, (uint64_t)y);
	put_digits(at + 5, 2, (uint64_t)m);
	put_digits(at + 8, 2, (uint64_t)d);
}

/* Once for each read: its lines came at the same time as far as can be known. */
static void stamp(uint32_t s)
{
	uint64_t t = wall_time();
	int64_t second = (int64_t)(t / 1000000000u);
	if (second != header_second) {
		header_second = second;
		put_date(header, second / 86400);
		put_digits(header + 11, 2, (uint64_t)(second / 3600 % 24));
		put_digits(header + 14, 2, (uint64_t)(second / 60 % 60));
		put_digits(header + 17, 2, (uint64_t)(second % 60));
	}
	put_digits(header + 20, 9, t % 1000000000u);
	memcpy(header + AT_STREAM, s == 0 ? "stdout" : "stderr", 6);
}

/* Most lines are short, and the buffers have room behind them. */
static inline void copy(char *to, const char *from, uint32_t n)
{
	if (n > 512) {
		memcpy(to, from, n);
		return;
	}
	for (uint32_t i = 0; i < n; i += 32)
		memcpy(to + i, from + i, 32);
}

/* Counts records that are lost. Their headers are not the container's bytes. */
static void drop_records(struct log *l, const char *records, uint32_t size)
{
	uint64_t content = size;
	for (const char *at = records, *end = records + size; at < end; at++) {
		at = memchr(at, '\n', (size_t)(end - at));
		if (at == NULL)
			break;
		content -= LOG_HEADER;
	}
	atomic_fetch_add(&l->dropped, content);
	l->unreported += content;
}

/* Writes all it can. Returns how much the file took. */
static uint32_t put(struct log *l, const char *data, uint32_t size)
{
	uint32_t done = 0, tries = 0;
	while (done < size) {
		writer_busy(true);
		long n = sys(SYS_write, l->fd, data + done, size - done);
		writer_busy(false);
		if (n > 0) {
			done += (uint32_t)n;
			atomic_fetch_add(&l->bytes, (uint64_t)n);
		} else if (++tries == 3 || (n != -EINTR && n != -EAGAIN && n != 0)) {
			l->retry = now() + RETRY_AFTER;
			break;
		}
	}
	return done;
}

/* The file is about to be another one. */
void log_forget_rest(struct log *l)
{
	atomic_fetch_add(&l->dropped, l->rest);
	l->unreported += l->rest;
	l->rest = 0;
}

/* Writes records; keeps the rest of a torn one, drops those after it. True when all are in the file. */
static bool put_records(struct log *l, uint32_t index, const char *data, uint32_t size)
{
	uint32_t done = put(l, data, size);
	if (done == size)
		return true;
	if (done > 0 && data[done - 1] != '\n') {
		const char *end = memchr(data + done, '\n', size - done);
		uint32_t rest = end != NULL ? (uint32_t)(end - (data + done)) + 1 : size - done;
		memcpy(log_rest(index), data + done, rest);
		l->rest = rest;
		done += rest;
	}
	drop_records(l, data + done, size - done);
	return false;
}

/* After a failure: first the rest of the torn record, then how much was lost. */
static bool put_first(struct log *l, uint32_t index)
{
	char note[LOG_HEADER + 64];
	if (l->rest > 0) {
		uint32_t done = put(l, log_rest(index), l->rest);
		memmove(log_rest(index), log_rest(index) + done, l->rest - done);
		l->rest -= done;
		if (l->rest > 0)
			return false;
	}
	if (l->unreported == 0)
		return true;
	uint64_t told = l->unreported;
	uint32_t n = 1;
	for (uint64_t v = told; v >= 10; v /= 10)
		n++;
	memcpy(note, header, LOG_HEADER);
	memcpy(note + AT_STREAM, "stderr F", 8);
	memcpy(note + LOG_HEADER, "pause: ", 7);
	put_digits(note + LOG_HEADER + 7, n, told);
	memcpy(note + LOG_HEADER + 7 + n, " bytes dropped\n", 15);
	uint32_t size = LOG_HEADER + 7 + n + 15, done = put(l, note, size);
	if (done == 0)
		return false;
	memcpy(log_rest(index), note + done, size - done);
	l->rest = size - done;
	l->unreported = 0;
	return l->rest == 0;
}

/* Writes what has been collected for a log; at the end of a stream also what is owed without it. */
static void flush(struct log *l, uint32_t index, bool end)
{
	uint32_t size = out_size;
	out_size = 0;
	if (l->fd == 0 || (size == 0 && !(end && (l->rest > 0 || l->unreported > 0))))
		return;
	if (l->retry != 0 && now() < l->retry) {
		drop_records(l, memory.out, size);
		return;
	}
	l->retry = 0;
	if ((l->rest > 0 || l->unreported > 0) && !put_first(l, index))
		drop_records(l, memory.out, size);
	else
		(void)put_records(l, index, memory.out, size);
}

/* One record; content has no newline. */
static inline void record(struct log *l, uint32_t index, char tag, const char *content, uint32_t size)
{
	if (out_size + LOG_HEADER + size + 1 > OUT_SIZE)
		flush(l, index, false);
	char *at = memory.out + out_size;
	header[AT_TAG] = tag;
	memcpy(at, header, LOG_HEADER);
	copy(at + LOG_HEADER, content, size);
	at[LOG_HEADER + size] = '\n';
	out_size += LOG_HEADER + size + 1;
}

/* ---- lines ---- */

/* A line that has grown too long becomes partial records of line_max bytes. Returns what is left of it. */
static const char *split(struct log *l, uint32_t index, struct stream *st, const char *line, const char *end)
{
	while ((size_t)(end - line) > l->line_max) {
		record(l, index, 'P', line, l->line_max);
		st->open_line = true;
		line += l->line_max;
	}
	return line;
}

/* Bytes are missing at this point of the stream: the line that was being read is lost, up to its end. */
static void lose_line(struct log *l, uint32_t index, struct stream *st)
{
	uint64_t lost = atomic_load(&st->lost);
	uint64_t bytes = lost - st->lost_seen + st->held;
	st->lost_seen = lost;
	atomic_fetch_add(&l->dropped, bytes);
	l->unreported += bytes;
	st->held = 0;
	if (st->open_line)
		record(l, index, 'F', "", 0); /* the reader must not join it with the next one */
	st->open_line = false;
	st->lost_line = true;
}

static void lines(struct log *l, uint32_t index, uint32_t s, const char *from, const char *fresh, const char *end)
{
	struct stream *st = &l->stream[s];
	if (st->lost_line) {
		const char *nl = memchr(fresh, '\n', (size_t)(end - fresh));
		uint64_t skipped = (uint64_t)((nl != NULL ? nl + 1 : end) - fresh);
		atomic_fetch_add(&l->dropped, skipped);
		l->unreported += skipped;
		if (nl == NULL)
			return;
		st->lost_line = false;
		from = fresh = nl + 1;
	}
	for (const char *nl; fresh < end && (nl = memchr(fresh, '\n', (size_t)(end - fresh))) != NULL; from = fresh = nl + 1) {
		if ((size_t)(nl - from) > l->line_max)
			from = split(l, index, st, from, nl);
		record(l, index, 'F', from, (uint32_t)(nl - from));
		st->open_line = false;
	}
	from = split(l, index, st, from, end);
	st->held = (uint32_t)(end - from);
	memcpy(log_held(index, s), from, st->held);
	held_dirty[index] |= st->held > 0;
}

/* What is left of a line when no more will come, or the container is gone: a partial record, as its newline never came. */
void log_end_line(uint32_t index, uint32_t s)
{
	struct log *l = log_at(index);
	struct stream *st = &l->stream[s];
	stamp(s);
	if (st->held > 0)
		record(l, index, 'P', log_held(index, s), st->held);
	st->held = 0;
	flush(l, index, true);
}

void log_close_stream(uint32_t index, uint32_t s, int epoll)
{
	struct log *l = log_at(index);
	while (!log_reading(l)) /* the supervisor empties the pipe: it is quick */
		;
	int fd = atomic_exchange(&l->stream[s].fd, 0);
	if (fd != 0) {
		(void)sys(SYS_epoll_ctl, epoll, EPOLL_CTL_DEL, fd, 0); /* a child may hold a copy */
		(void)sys(SYS_close, fd);
	}
	log_read_done(l);
	attach_end(index, s);
}

/* Reads once and writes what that gave. */
enum log_turn log_turn(uint32_t index, uint32_t s)
{
	struct log *l = log_at(index);
	struct stream *st = &l->stream[s];
	char *fresh = memory.in + MAX_LINE;
	if (!log_reading(l))
		return LOG_EMPTY; /* it will be looked at again */
	long n = sys(SYS_read, atomic_load(&st->fd), fresh, READ_SIZE);
	if (n > 0)
		attach_copy(index, s, fresh, (uint32_t)n);
	bool lost = atomic_load(&st->lost) != st->lost_seen;
	log_read_done(l);
	dirty = true;
	stamp(s);
	if (lost)
		lose_line(l, index, st);
	if (n > 0) {
		char *from = fresh - st->held;
		memcpy(from, log_held(index, s), st->held);
		lines(l, index, s, from, fresh, fresh + n);
	}
	flush(l, index, false);
	if (n > 0)
		return LOG_MORE;
	if (n == -EAGAIN || n == -EINTR)
		return LOG_EMPTY;
	log_end_line(index, s);
	return LOG_END;
}
