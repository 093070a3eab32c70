/*
 * program.c - checking and running a Program (program.h). Runs in a child between clone3 and execve, and
 * once in pause itself (boot). It is the hottest code of a start: one loop, no library, few pages.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "pause.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_WRITE) /* what was checked stays so */

COLD static long results[PROGRAM_MAX_SLOTS];

int program_map(int fd, struct program *p)
{
	struct stat st;
	long err = sys(SYS_fstat, fd, &st);
	if (sys_failed(err))
		return (int)err;
	long seals = sys(SYS_fcntl, fd, F_GET_SEALS);
	if (seals < 0 || (seals & SEALS) != SEALS)
		return -EPERM;
	if (st.st_size < (off_t)sizeof(struct program_header) || st.st_size > PROGRAM_MAX_SIZE)
		return -EINVAL;
	size_t size = (size_t)st.st_size;
	int flags = MAP_PRIVATE | (size <= 65536 ? MAP_POPULATE : 0);
	long at = sys(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (sys_failed(at))
		return (int)at;
	p->head = (struct program_header *)at;
	p->mapped = size;
	struct program_header *h = p->head;
	uint64_t want = sizeof *h + (uint64_t)h->ninstr * sizeof(struct program_instr) + (uint64_t)h->nreloc * sizeof(struct program_reloc) + h->blob_size;
	if (h->magic != PROGRAM_MAGIC || h->size != size || want != size)
		return -ENOEXEC;
	p->instrs = (struct program_instr *)(h + 1);
	p->relocs = (struct program_reloc *)(p->instrs + h->ninstr);
	p->blob = (char *)(p->relocs + h->nreloc);
	return 0;
}

void program_unmap(struct program *p)
{
	if (p->head != NULL)
		(void)sys(SYS_munmap, p->head, p->mapped); /* the header may lie */
	p->head = NULL;
}

static bool instr_valid(const struct program_header *h, const struct program_instr *in, uint32_t i)
{
	uint32_t left = h->ninstr - i - 1;
	return (in->flags & ~(INSTR_EXEC | INSTR_NONZERO | INSTR_ZERO | INSTR_AGAIN)) == 0 && in->dst <= h->nslots && in->err_skip <= left && in->ok_skip <= left;
}

static bool reloc_valid(const struct program_header *h, const struct program_reloc *r)
{
	uint32_t width = r->where == RELOC_WORD32 ? 4 : 8;
	if (r->where > RELOC_WORD32)
		return false;
	if (r->where >= RELOC_WORD64 && (r->at % width != 0 || h->blob_size < width || r->at > h->blob_size - width))
		return false;
	switch (r->kind) {
	case RELOC_BLOB:
		return r->value <= h->blob_size && r->where != RELOC_WORD32;
	case RELOC_FD:
		return r->value < h->nfds;
	case RELOC_SLOT:
		return r->value < h->nslots;
	case RELOC_PAUSE:
		return true;
	default:
		return false;
	}
}

/* The form of a whole Program. On failure the index of the offending instruction or relocation is in r. */
int program_check(const struct program *p, uint32_t nfds, struct report *r)
{
	const struct program_header *h = p->head;
	r->index = 0;
	if (h->ninstr > PROGRAM_MAX_INSTR || h->nslots > PROGRAM_MAX_SLOTS || h->nfds > PROGRAM_MAX_FDS)
		return -E2BIG;
	if (h->nfds > nfds || (h->flags & ~PROGRAM_EXECS) != 0)
		return -EINVAL;
	for (uint32_t i = 0; i < h->ninstr; i++) {
		if (!instr_valid(h, &p->instrs[i], i)) {
			r->index = i;
			return -EINVAL;
		}
	}
	uint32_t last = 0;
	for (uint32_t i = 0; i < h->nreloc; i++) {
		const struct program_reloc *l = &p->relocs[i];
		if (l->instr < last || l->instr >= h->ninstr || !reloc_valid(h, l)) {
			r->index = i;
			return -EINVAL;
		}
		last = l->instr;
	}
	return 0;
}

static void relocate(const struct program *p, const struct program_reloc *r, const int *fds)
{
	uint64_t v = 0;
	switch (r->kind) {
	case RELOC_BLOB:
		v = (uint64_t)(uintptr_t)(p->blob + r->value);
		break;
	case RELOC_FD:
		v = (uint64_t)fds[r->value];
		break;
	case RELOC_SLOT:
		v = (uint64_t)results[r->value];
		break;
	case RELOC_PAUSE:
		v = (uint64_t)pause_pidfd;
		break;
	}
	if (r->where < RELOC_WORD64)
		p->instrs[r->instr].args[r->where] = v;
	else if (r->where == RELOC_WORD64)
		memcpy(p->blob + r->at, &v, 8);
	else
		memcpy(p->blob + r->at, &v, 4);
}

static long run_one(const struct program_instr *in)
{
	const uint64_t *a = in->args;
	long got;
	do {
		got = sys(in->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	} while (got == -EAGAIN && (in->flags & INSTR_AGAIN) != 0);
	if ((in->flags & INSTR_NONZERO) != 0 && got == 0)
		return -EPIPE;
	if ((in->flags & INSTR_ZERO) != 0 && got != 0 && !sys_failed(got))
		return -ESRCH;
	return got;
}

static bool tolerates(const struct program_instr *in, long err)
{
	return in->err == INSTR_ANY_ERROR || (in->err != 0 && err == -in->err) || (in->err2 != 0 && err == -in->err2);
}

/* Runs a checked Program to its end. Returns 0 or the -errno of instruction r->index. */
int program_run(const struct program *p, const int *fds, struct report *r)
{
	const struct program_header *h = p->head;
	uint32_t next_reloc = 0, denied = 0;
	int missing = -ENOENT; /* what is said when no execve candidate succeeded */
	for (uint32_t i = 0; i < h->nslots; i++)
		results[i] = -1;
	for (uint32_t i = 0; i < h->ninstr;) {
		const struct program_instr *in = &p->instrs[i];
		while (next_reloc < h->nreloc && p->relocs[next_reloc].instr <= i) {
			if (p->relocs[next_reloc].instr == i)
				relocate(p, &p->relocs[next_reloc], fds);
			next_reloc++;
		}
		r->index = i;
		r->phase = (in->flags & INSTR_EXEC) != 0 ? REPORT_EXECS : REPORT_RUNS;
		long got = run_one(in);
		if (!sys_failed(got)) {
			if (in->dst != 0)
				results[in->dst - 1] = got;
			i += 1u + in->ok_skip;
		} else if ((in->flags & INSTR_EXEC) != 0 && (got == -ENOENT || got == -ENOTDIR || got == -EACCES)) {
			if (got == -EACCES && missing != -EACCES) {
				missing = -EACCES;
				denied = i;
			}
			i++;
		} else if (tolerates(in, got)) {
			i += 1u + in->err_skip;
		} else {
			return (int)got;
		}
	}
	if ((h->flags & PROGRAM_EXECS) == 0)
		return 0;
	if (missing == -EACCES)
		r->index = denied;
	return missing;
}
