#include "textflag.h"

// See init_amd64.s. Registers:
//	R19 argc and argv   R20 paths to try   R21 arguments   R22 environment
//	R23 child, or in the child the error to report
// Constants stay below 65536: a larger one would be loaded from behind the mark.
TEXT initCode<>(SB), NOSPLIT|NOFRAME, $0
	MOVD RSP, R19
	SUB  $64, RSP
	MOVD $-1, R9
	MOVD R9, 0(RSP)
	MOVD ZR, 8(RSP)
	MOVD $135, R8 // rt_sigprocmask(SIG_SETMASK, all)
	MOVD $2, R0
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	ADD  $16, R19, R20
	MOVD R20, R21

scan:
	MOVD 0(R21), R9
	ADD  $8, R21
	MOVBU 0(R9), R9
	CBNZ R9, scan
	MOVD 0(R19), R9
	LSL  $3, R9
	ADD  $16, R19, R22
	ADD  R9, R22
	MOVD $220, R8 // clone(SIGCHLD), a fork
	MOVD $17, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	SVC
	MOVD R0, R23
	CMP  $0, R0
	BLT  report
	BEQ  child
	MOVD $57, R8 // close(3)
	MOVD $3, R0
	SVC

wait:
	MOVD $137, R8 // rt_sigtimedwait(all)
	MOVD RSP, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	CMP  $17, R0 // SIGCHLD
	BEQ  reap
	CMP  $0, R0
	BLE  wait
	MOVD R0, R1
	MOVD R23, R0
	MOVD $129, R8 // kill(child, signal)
	SVC
	B    wait

reap:
	MOVD $260, R8 // wait4(-1, WNOHANG)
	MOVD $-1, R0
	ADD  $16, RSP, R1
	MOVD $1, R2
	MOVD $0, R3
	SVC
	CMP  R23, R0
	BEQ  ended
	CMP  $0, R0
	BGT  reap
	B    wait

ended:
	MOVWU 16(RSP), R9
	AND  $127, R9, R0
	CBNZ R0, signal
	LSR  $8, R9
	AND  $255, R9, R0
	B    exit

signal:
	ADD  $128, R0

exit:
	MOVD $94, R8 // exit_group
	SVC

child:
	MOVD $154, R8 // setpgid(0, 0)
	MOVD $0, R0
	MOVD $0, R1
	SVC
	MOVD $172, R8 // getpid
	SVC
	MOVD R0, 16(RSP)
	MOVD $29, R8 // ioctl(0, TIOCSPGRP)
	MOVD $0, R0
	MOVD $0x5410, R1
	ADD  $16, RSP, R2
	SVC
	MOVD $135, R8 // rt_sigprocmask(SIG_SETMASK, none)
	MOVD $2, R0
	ADD  $8, RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	MOVD $25, R8 // fcntl(3, F_SETFD, FD_CLOEXEC)
	MOVD $3, R0
	MOVD $2, R1
	MOVD $1, R2
	SVC
	MOVD $0, R23

try:
	MOVD 0(R20), R0
	ADD  $8, R20
	MOVBU 0(R0), R9
	CBZ  R9, none
	MOVD R21, R1
	MOVD R22, R2
	MOVD $221, R8 // execve
	SVC
	CMN  $2, R0 // ENOENT
	BEQ  try
	CMN  $20, R0 // ENOTDIR
	BEQ  try
	MOVD R0, R23
	CMN  $13, R0 // EACCES
	BEQ  try
	B    report

none:
	CBNZ R23, report
	MOVD $-2, R23

report:
	MOVD R23, 16(RSP)
	MOVD $64, R8 // write(3, error)
	MOVD $3, R0
	ADD  $16, RSP, R1
	MOVD $8, R2
	SVC
	MOVD $127, R0
	B    exit
	WORD $0x70616e73 // "snap"
	WORD $0x74696e69 // "init"

// func initAddr() unsafe.Pointer
TEXT ·initAddr(SB), NOSPLIT, $0-8
	MOVD $initCode<>(SB), R0
	MOVD R0, ret+0(FP)
	RET
