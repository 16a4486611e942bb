#include "textflag.h"

// func vmclone(args *cloneArgs, ops *op, n int, out *outcome) (pid int)
//
// See vm_amd64.s. Registers of the child:
//	R19 op   R20 number of ops   R21 outcome   R22 index   R23 flags
TEXT ·vmclone(SB), NOSPLIT, $0-40
	MOVD args+0(FP), R0
	MOVD $88, R1
	MOVD ops+8(FP), R19
	MOVD n+16(FP), R20
	MOVD out+24(FP), R21
	MOVD $435, R8 // clone3
	SVC
	CBZ  R0, child
	MOVD R0, pid+32(FP)
	RET

child:
	MOVD $0, R22

loop:
	CMP  R20, R22
	BGE  exhausted
	MOVD 56(R19), R23
	MOVD 8(R19), R0
	TBZ  $0, R23, arg1
	MOVD (R0), R0

arg1:
	MOVD 16(R19), R1
	TBZ  $1, R23, arg2
	MOVD (R1), R1

arg2:
	MOVD 24(R19), R2
	TBZ  $2, R23, arg3
	MOVD (R2), R2

arg3:
	MOVD 32(R19), R3
	TBZ  $3, R23, arg4
	MOVD (R3), R3

arg4:
	MOVD 40(R19), R4
	TBZ  $4, R23, arg5
	MOVD (R4), R4

arg5:
	MOVD 48(R19), R5
	TBZ  $5, R23, call
	MOVD (R5), R5

call:
	MOVD 0(R19), R8
	CMN  $1, R8
	BEQ  compare
	SVC
	MOVD R0, 88(R19)
	CMN  $4095, R0
	BHS  failed

succeeded:
	TBZ  $8, R23, stay // flagFork
	CBNZ R0, leave // a child goes on in its place

stay:
	MOVD 80(R19), R9

next:
	ADD  $1, R9
	ADD  R9, R22
	MOVD $96, R10
	MUL  R10, R9
	ADD  R9, R19
	B    loop

// opCompare: the words at arg 0 and 1 agree under the mask arg 2, or the error is arg 3.
compare:
	MOVD (R0), R9
	MOVD (R1), R10
	EOR  R10, R9
	AND  R2, R9
	CBZ  R9, succeeded
	MOVD R3, R0

failed:
	TBZ  $7, R23, notexec // flagExec
	CMN  $2, R0 // ENOENT
	BEQ  tolerated
	CMN  $20, R0 // ENOTDIR
	BEQ  tolerated
	CMN  $13, R0 // EACCES
	BNE  notexec
	MOVD R0, 16(R21)
	B    tolerated

notexec:
	TBNZ $6, R23, tolerated // flagAny
	MOVD 64(R19), R9
	CMP  R9, R0
	BEQ  tolerated
	MOVD R22, 0(R21)
	MOVD R0, 8(R21)
	B    exit

tolerated:
	MOVD 72(R19), R9
	B    next

exhausted:
	MOVD R22, 0(R21)
	MOVD 16(R21), R0
	CBNZ R0, denied
	MOVD $-2, R0

denied:
	MOVD R0, 8(R21)

exit:
	MOVD 24(R21), R0 // outcome.report
	CBZ  R0, end
	MOVD R21, R1
	MOVD $24, R2
	MOVD $64, R8 // write
	SVC

end:
	MOVD $94, R8 // exit_group
	MOVD $127, R0
	SVC
	B    end

leave:
	MOVD $94, R8
	MOVD $0, R0
	SVC
	B    leave
