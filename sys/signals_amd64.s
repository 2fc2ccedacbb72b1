#include "textflag.h"

// The handler of Catch: the kernel calls it on the thread's signal stack with the number in DI, and the address of the
// restorer as return address. It may change any register, because the kernel gives them all back (sigreturn(2)), and
// runs no Go code. It writes the number's low byte to the signal's descriptor.
TEXT ·handler(SB),NOSPLIT|NOFRAME|TOPFRAME,$0-0
	MOVLQSX DI, AX
	LEAQ ·caughtFDs(SB), BX
	MOVLQSX (BX)(AX*4), DI
	TESTQ DI, DI
	JLT  done
	SUBQ $8, SP
	MOVQ AX, (SP)
	MOVQ SP, SI
	MOVQ $1, DX
	MOVQ $1, AX
	SYSCALL
	ADDQ $8, SP
done:
	RET

// Where the handler returns to: rt_sigreturn(2).
TEXT ·restorer(SB),NOSPLIT|NOFRAME|TOPFRAME,$0-0
	MOVQ $15, AX
	SYSCALL
	INT  $3

// func handlerAddr() uintptr
TEXT ·handlerAddr(SB),NOSPLIT,$0-8
	LEAQ ·handler(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func restorerAddr() uintptr
TEXT ·restorerAddr(SB),NOSPLIT,$0-8
	LEAQ ·restorer(SB), AX
	MOVQ AX, ret+0(FP)
	RET
