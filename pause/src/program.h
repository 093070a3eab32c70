/*
 * program.h - the wire format of a Program: system calls that criserver compiled and that a child
 * of pause executes between clone3 and execve (or pause itself, once, while it boots).
 *
 * A Program arrives as a sealed memfd and is mapped privately by the process that runs it:
 *
 *   struct program_header
 *   struct program_instr [ninstr]
 *   struct program_reloc [nreloc]      ascending by .instr
 *   blob                               blob_size bytes, 8-byte aligned
 *
 * All numbers are in host byte order; all offsets and indices are checked before the first
 * instruction runs, jumps only go forward, so every Program ends.
 */
#ifndef CRISERVER_PROGRAM_H
#define CRISERVER_PROGRAM_H

#include <stdint.h>

#define PROGRAM_MAGIC 0x31475250u /* "PRG1" */

#define PROGRAM_MAX_SIZE (4u << 20) /* bytes of a whole Program */
#define PROGRAM_MAX_INSTR 8192u
#define PROGRAM_MAX_SLOTS 2048u
#define PROGRAM_MAX_FDS 1024u

/* header.flags */
#define PROGRAM_EXECS 1u /* must end in a successful execve; running past the end is a failure */

struct program_header {
	uint32_t magic;
	uint32_t size; /* bytes, all parts together */
	uint32_t ninstr;
	uint32_t nreloc;
	uint32_t blob_size;
	uint32_t nslots; /* results that instructions keep */
	uint32_t nfds;	 /* descriptors that travel with the Program */
	uint32_t flags;
};

/* instr.flags */
#define INSTR_EXEC 1u	 /* an execve candidate: ENOENT, ENOTDIR and EACCES go on to the next instruction;
			  * at the end EACCES is reported if any candidate met it, else ENOENT */
#define INSTR_NONZERO 2u /* a result of 0 is a failure (EPIPE): a synchronising read whose writer is gone */
#define INSTR_ZERO 4u	 /* a result other than 0 is a failure (ESRCH): the poll that asks whether pause lives */
#define INSTR_AGAIN 8u	 /* repeated while it fails with EAGAIN: openat2, whose ".." met a mount or rename elsewhere */

#define INSTR_ANY_ERROR 0xffffu /* instr.err: tolerate every errno */

struct program_instr {
	uint32_t nr;	   /* system call number */
	uint16_t flags;	   /* INSTR_* */
	uint16_t dst;	   /* 1 + slot that keeps the result; 0: none. Not written when an error is tolerated */
	uint16_t err;	   /* errno that is tolerated, 0: none */
	uint16_t err2;	   /* another one, 0: none */
	uint16_t err_skip; /* instructions to skip after a tolerated error */
	uint16_t ok_skip;  /* instructions to skip after success */
	uint64_t args[6];
};

/* reloc.kind: what is stored */
#define RELOC_BLOB 0u  /* address of blob + value */
#define RELOC_FD 1u    /* number of passed descriptor [value] */
#define RELOC_SLOT 2u  /* result slot [value] */
#define RELOC_PAUSE 3u /* a pidfd of pause itself; value unused */

/* reloc.where: 0..5 an argument of .instr, else a word of the blob at .at */
#define RELOC_WORD64 6u
#define RELOC_WORD32 7u

/* Applied just before instruction .instr runs. */
struct program_reloc {
	uint32_t instr;
	uint16_t kind;
	uint16_t where;
	uint32_t at;	/* byte offset into the blob, naturally aligned; 0 for arguments */
	uint32_t value; /* see kind */
};

_Static_assert(sizeof(struct program_header) == 32, "program_header");
_Static_assert(sizeof(struct program_instr) == 64, "program_instr");
_Static_assert(sizeof(struct program_reloc) == 16, "program_reloc");

#endif
