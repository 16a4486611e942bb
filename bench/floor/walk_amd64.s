#include "textflag.h"

// The floor's program, see floor.go. It is never run in this process: image
// copies its bytes to 0x400080 of a program of its own, with the number of ops
// at 0x400078, room for what failed at 0x4003f0, and the ops from 0x400400 on.
// An op is 80 bytes: number, six arguments, flags, result, ops to skip.
// Registers:
//	R12 op   R13 ops to go
TEXT walk<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ $0x400400, R12
	MOVQ $0x400078, R13
	MOVQ (R13), R13

loop:
	MOVQ 56(R12), CX
	MOVQ 8(R12), DI
	TESTQ $1, CX
	JZ   arg1
	MOVQ (DI), DI

arg1:
	MOVQ 16(R12), SI
	TESTQ $2, CX
	JZ   arg2
	MOVQ (SI), SI

arg2:
	MOVQ 24(R12), DX
	MOVQ 32(R12), R10
	MOVQ 40(R12), R8
	MOVQ 48(R12), R9
	MOVQ 0(R12), AX
	SYSCALL
	MOVQ AX, 64(R12)
	CMPQ AX, $0xfffffffffffff001
	JCC  failed
	MOVQ 56(R12), CX
	TESTQ $64, CX // flagFork
	JZ   ended
	TESTQ AX, AX
	JZ   next // the child goes on, the parent behind it
	MOVQ 72(R12), CX
	SUBQ CX, R13
	IMULQ $80, CX
	ADDQ CX, R12
	JMP  next

ended:
	TESTQ $512, CX // flagStatus
	JZ   next
	MOVQ 16(R12), SI
	MOVL (SI), AX
	TESTL AX, AX
	JNE  report

next:
	ADDQ $80, R12
	DECQ R13
	JMP  loop

failed:
	MOVQ 56(R12), CX
	TESTQ $128, CX // flagExists
	JZ   busy
	CMPQ AX, $-17 // EEXIST
	JEQ  next

busy:
	TESTQ $256, CX // flagBusy
	JZ   report
	CMPQ AX, $-16 // EBUSY
	JEQ  loop

report:
	MOVQ $0x4003f0, SI
	MOVQ R13, 0(SI)
	MOVQ AX, 8(SI)
	MOVQ $1, AX // write(2, what failed, 16)
	MOVQ $2, DI
	MOVQ $16, DX
	SYSCALL
	MOVQ $231, AX // exit_group(1)
	MOVQ $1, DI
	SYSCALL
	BYTE $'s'; BYTE $'n'; BYTE $'a'; BYTE $'p'; BYTE $'w'; BYTE $'a'; BYTE $'l'; BYTE $'k'

// func walkAddr() unsafe.Pointer
TEXT ·walkAddr(SB), NOSPLIT, $0-8
	LEAQ walk<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET
