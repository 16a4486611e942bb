#include "textflag.h"

// snapfs_entry is where a program begins that is linked with -E snapfs_entry: it
// does what Seal does before there is a Go runtime, which is most of what
// executing the program a second time would cost. If it is not called snaprun,
// or with none of the verbs run, create and exec, or is sealed already, or if
// something fails, the program starts as any other; then Seal says what is wrong.
//
// The stack is as the kernel left it: argc, argv, NULL, environment, NULL, …, and
// behind all strings eight zero bytes (fs/exec.c, bprm_mm_init), so that eight
// bytes can be read at each. Nothing is written but below the stack pointer.
//	R12 argc   R13 argv   R14 the mount   BX memory
TEXT snapfs_entry(SB), NOSPLIT|NOFRAME, $0
	MOVQ 0(SP), R12
	LEAQ 8(SP), R13
	MOVQ SP, BX
	SUBQ $256, BX
	CMPQ R12, $2
	JLT  start
	MOVQ 0(R13), SI

element:
	MOVQ SI, DI // where the last element of the name begins

byte:
	MOVBLZX 0(SI), AX
	INCQ SI
	CMPL AX, $0x2f // a slash
	JEQ  element
	TESTL AX, AX
	JNE  byte
	SUBQ DI, SI
	CMPQ SI, $8
	JNE  start
	MOVQ $0x006e757270616e73, AX // "snaprun\0"
	CMPQ AX, 0(DI)
	JNE  start
	MOVQ $1, CX

argument:
	CMPQ CX, R12
	JGE  start
	MOVQ (R13)(CX*8), AX
	INCQ CX
	MOVQ 0(AX), AX
	CMPL AX, $0x006e7572 // "run\0"
	JEQ  seal
	MOVQ AX, DX
	SHLQ $24, DX
	MOVQ $0x0063657865000000, SI // "exec\0"
	CMPQ DX, SI
	JEQ  seal
	SHLQ $8, AX
	MOVQ $0x0065746165726300, SI // "create\0"
	CMPQ AX, SI
	JNE  argument

seal:
	MOVQ $0x65732f636f72702f, AX // "/proc/self/exe"
	MOVQ AX, 0(BX)
	MOVQ $0x00006578652f666c, AX
	MOVQ AX, 8(BX)
	MOVQ $137, AX // statfs(…, buffer)
	MOVQ BX, DI
	LEAQ 16(BX), SI
	SYSCALL
	TESTQ AX, AX
	JNE  start
	MOVQ 96(BX), AX // f_flags
	TESTQ $1, AX // ST_RDONLY
	JNE  start
	MOVQ $428, AX // open_tree(AT_FDCWD, …, OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC)
	MOVQ $-100, DI
	MOVQ BX, SI
	MOVQ $0x80001, DX
	SYSCALL
	TESTQ AX, AX
	JLT  start
	MOVQ AX, R14
	MOVQ $1, 16(BX) // struct mount_attr: set MOUNT_ATTR_RDONLY
	MOVQ $0, 24(BX)
	MOVQ $0, 32(BX)
	MOVQ $0, 40(BX)
	MOVQ $0, 48(BX) // ""
	MOVQ $442, AX // mount_setattr(mount, "", AT_EMPTY_PATH, attr, 32)
	MOVQ R14, DI
	LEAQ 48(BX), SI
	MOVQ $0x1000, DX
	LEAQ 16(BX), R10
	MOVQ $32, R8
	SYSCALL
	TESTQ AX, AX
	JNE  unseal
	MOVQ $322, AX // execveat(mount, "", argv, environment, AT_EMPTY_PATH)
	MOVQ R14, DI
	LEAQ 48(BX), SI
	MOVQ R13, DX
	LEAQ 8(R13)(R12*8), R10
	MOVQ $0x1000, R8
	SYSCALL

unseal:
	MOVQ $3, AX // close
	MOVQ R14, DI
	SYSCALL

start:
	JMP _rt0_amd64_linux(SB)
