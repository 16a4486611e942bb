#include "textflag.h"

// The program of a container's PID 1, see init.go. It is never run in this
// process: elf copies its bytes. So it must not refer to anything, and it ends
// with the mark that says how long it is. Registers:
//	R12 argc and argv   R13 paths to try   R14 arguments   R15 environment
//	BX child, or in the child the error to report
// Stack: 0 all signals, 8 none, 16 scratch.
TEXT initCode<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ SP, R12
	SUBQ $64, SP
	MOVQ $-1, 0(SP)
	MOVQ $0, 8(SP)
	MOVQ $14, AX // rt_sigprocmask(SIG_SETMASK, all)
	MOVQ $2, DI
	LEAQ 0(SP), SI
	XORL DX, DX
	MOVQ $8, R10
	SYSCALL
	LEAQ 16(R12), R13
	MOVQ R13, R14

scan:
	MOVQ 0(R14), AX
	ADDQ $8, R14
	CMPB 0(AX), $0
	JNE  scan
	MOVQ 0(R12), AX
	LEAQ 16(R12)(AX*8), R15
	MOVQ $56, AX // clone(SIGCHLD), a fork
	MOVQ $17, DI
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	SYSCALL
	MOVQ AX, BX
	TESTQ AX, AX
	JLT  report
	JEQ  child
	MOVQ $3, AX // close(3)
	MOVQ $3, DI
	SYSCALL

wait:
	MOVQ $128, AX // rt_sigtimedwait(all)
	LEAQ 0(SP), DI
	XORL SI, SI
	XORL DX, DX
	MOVQ $8, R10
	SYSCALL
	CMPQ AX, $17 // SIGCHLD
	JEQ  reap
	TESTQ AX, AX
	JLE  wait
	MOVQ AX, SI
	MOVQ BX, DI
	MOVQ $62, AX // kill(child, signal)
	SYSCALL
	JMP  wait

reap:
	MOVQ $61, AX // wait4(-1, WNOHANG)
	MOVQ $-1, DI
	LEAQ 16(SP), SI
	MOVQ $1, DX
	XORL R10, R10
	SYSCALL
	CMPQ AX, BX
	JEQ  ended
	TESTQ AX, AX
	JGT  reap
	JMP  wait

ended:
	MOVL 16(SP), AX
	MOVL AX, DI
	ANDL $127, DI
	JNE  signal
	SHRL $8, AX
	ANDL $255, AX
	MOVL AX, DI
	JMP  exit

signal:
	ADDL $128, DI

exit:
	MOVQ $231, AX // exit_group
	SYSCALL

child:
	MOVQ $109, AX // setpgid(0, 0)
	XORL DI, DI
	XORL SI, SI
	SYSCALL
	MOVQ $39, AX // getpid
	SYSCALL
	MOVQ AX, 16(SP)
	MOVQ $16, AX // ioctl(0, TIOCSPGRP)
	XORL DI, DI
	MOVQ $0x5410, SI
	LEAQ 16(SP), DX
	SYSCALL
	MOVQ $14, AX // rt_sigprocmask(SIG_SETMASK, none)
	MOVQ $2, DI
	LEAQ 8(SP), SI
	XORL DX, DX
	MOVQ $8, R10
	SYSCALL
	MOVQ $72, AX // fcntl(3, F_SETFD, FD_CLOEXEC)
	MOVQ $3, DI
	MOVQ $2, SI
	MOVQ $1, DX
	SYSCALL
	XORL BX, BX

try:
	MOVQ 0(R13), DI
	ADDQ $8, R13
	CMPB 0(DI), $0
	JEQ  none
	MOVQ R14, SI
	MOVQ R15, DX
	MOVQ $59, AX // execve
	SYSCALL
	CMPQ AX, $-2 // ENOENT
	JEQ  try
	CMPQ AX, $-20 // ENOTDIR
	JEQ  try
	MOVQ AX, BX
	CMPQ AX, $-13 // EACCES
	JEQ  try
	JMP  report

none:
	TESTQ BX, BX
	JNE  report
	MOVQ $-2, BX

report:
	MOVQ BX, 16(SP)
	MOVQ $1, AX // write(3, error)
	MOVQ $3, DI
	LEAQ 16(SP), SI
	MOVQ $8, DX
	SYSCALL
	MOVQ $127, DI
	JMP  exit
	BYTE $'s'; BYTE $'n'; BYTE $'a'; BYTE $'p'; BYTE $'i'; BYTE $'n'; BYTE $'i'; BYTE $'t'

// func initAddr() unsafe.Pointer
TEXT ·initAddr(SB), NOSPLIT, $0-8
	LEAQ initCode<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET
