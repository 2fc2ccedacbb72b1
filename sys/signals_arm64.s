#include "textflag.h"

// The handler of Catch: the kernel calls it on the thread's signal stack with the number in R0, and the address of the
// vDSO's sigreturn in R30. It may change any register, because the kernel gives them all back (sigreturn(2)), and runs no
// Go code. It writes the number's low byte to the signal's descriptor.
TEXT ·handler(SB),NOSPLIT|NOFRAME|TOPFRAME,$0-0
	MOVD $·caughtFDs(SB), R3
	MOVW R0, R5
	MOVW (R3)(R5<<2), R4
	TBNZ $31, R4, done
	SUB  $16, RSP
	MOVD R5, (RSP)
	MOVD R4, R0
	MOVD RSP, R1
	MOVD $1, R2
	MOVD $64, R8
	SVC
	ADD  $16, RSP
done:
	RET

// func handlerAddr() uintptr
TEXT ·handlerAddr(SB),NOSPLIT,$0-8
	MOVD $·handler(SB), R0
	MOVD R0, ret+0(FP)
	RET
