#include "textflag.h"

// func vmclone(args *cloneArgs, ops *op, n int, out *outcome) (pid int)
//
// The child touches neither stack nor heap but through the pointers it was
// given: with CLONE_VM both are its parent's. Registers of the child:
//	R12 op   R13 number of ops   R15 index   BX outcome
// The offsets are those of type op (see TestLayout).
TEXT ·vmclone(SB), NOSPLIT, $0-40
	MOVQ args+0(FP), DI
	MOVQ $88, SI
	MOVQ ops+8(FP), R12
	MOVQ n+16(FP), R13
	MOVQ out+24(FP), BX
	MOVQ $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JZ   child
	MOVQ AX, pid+32(FP)
	RET

child:
	XORQ R15, R15

loop:
	CMPQ R15, R13
	JGE  exhausted
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
	TESTQ $4, CX
	JZ   arg3
	MOVQ (DX), DX

arg3:
	MOVQ 32(R12), R10
	TESTQ $8, CX
	JZ   arg4
	MOVQ (R10), R10

arg4:
	MOVQ 40(R12), R8
	TESTQ $16, CX
	JZ   arg5
	MOVQ (R8), R8

arg5:
	MOVQ 48(R12), R9
	TESTQ $32, CX
	JZ   call
	MOVQ (R9), R9

call:
	MOVQ 0(R12), AX
	CMPQ AX, $-1
	JEQ  compare
	SYSCALL
	MOVQ AX, 88(R12)
	CMPQ AX, $0xfffffffffffff001
	JCC  failed

succeeded:
	MOVQ 56(R12), CX
	TESTQ $256, CX // flagFork
	JZ   stay
	TESTQ AX, AX
	JNZ  leave // a child goes on in its place

stay:
	MOVQ 80(R12), CX

next:
	INCQ CX
	ADDQ CX, R15
	IMULQ $96, CX
	ADDQ CX, R12
	JMP  loop

// opCompare: the words at arg 0 and 1 agree under the mask arg 2, or the error is arg 3.
compare:
	MOVQ (DI), AX
	XORQ (SI), AX
	ANDQ DX, AX
	JZ   succeeded
	MOVQ R10, AX

failed:
	MOVQ 56(R12), CX
	TESTQ $128, CX // flagExec
	JZ   notexec
	CMPQ AX, $-2 // ENOENT
	JEQ  tolerated
	CMPQ AX, $-20 // ENOTDIR
	JEQ  tolerated
	CMPQ AX, $-13 // EACCES
	JNE  notexec
	MOVQ AX, 16(BX)
	JMP  tolerated

notexec:
	TESTQ $64, CX // flagAny
	JNZ  tolerated
	CMPQ AX, 64(R12)
	JEQ  tolerated
	MOVQ R15, 0(BX)
	MOVQ AX, 8(BX)
	JMP  exit

tolerated:
	MOVQ 72(R12), CX
	JMP  next

exhausted:
	MOVQ R15, 0(BX)
	MOVQ 16(BX), AX
	TESTQ AX, AX
	JNZ  denied
	MOVQ $-2, AX

denied:
	MOVQ AX, 8(BX)

exit:
	MOVQ 24(BX), DI // outcome.report
	TESTQ DI, DI
	JZ   end
	MOVQ BX, SI
	MOVQ $24, DX
	MOVQ $1, AX // write
	SYSCALL

end:
	MOVQ $231, AX // exit_group
	MOVQ $127, DI
	SYSCALL
	JMP  end

leave:
	MOVQ $231, AX
	XORL DI, DI
	SYSCALL
	JMP  leave
