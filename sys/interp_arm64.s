#include "textflag.h"

// func cloneAndRun(args unsafe.Pointer, size uintptr, ops, status unsafe.Pointer) int
//
// The child shares the parent's stack pointer, and is safe because it never touches the stack.
TEXT ·cloneAndRun(SB),NOSPLIT|NOFRAME,$0-40
	MOVD args+0(FP), R0
	MOVD size+8(FP), R1
	MOVD ops+16(FP), R19
	MOVD status+24(FP), R20
	MOVD $435, R8
	SVC
	CBZ  R0, child
	MOVD R0, ret+32(FP)
	RET
child:
	JMP ·interpret(SB)

// func interpreterAddr() unsafe.Pointer
TEXT ·interpreterAddr(SB),NOSPLIT,$0-8
	MOVD $·interpret(SB), R0
	MOVD R0, ret+0(FP)
	RET

// The interpreter. R19 is the current operation, R20 the status. It uses no stack and calls nothing, so that it can
// be copied anywhere: all branches are relative, and no constant needs a literal pool. Layout of an operation: see Op.
TEXT ·interpret(SB),NOSPLIT|NOFRAME,$0-0
loop:
	MOVD 0(R19), R8
	MOVD 8(R19), R0
	MOVD 16(R19), R1
	MOVD 24(R19), R2
	MOVD 32(R19), R3
	MOVD 40(R19), R4
	MOVD 48(R19), R5
	MOVD 56(R19), R9
	CBZ  R9, ready
	TBZ  $0, R9, arg1
	MOVD (R0), R0
arg1:
	TBZ  $1, R9, arg2
	MOVD (R1), R1
arg2:
	TBZ  $2, R9, arg3
	MOVD (R2), R2
arg3:
	TBZ  $3, R9, arg4
	MOVD (R3), R3
arg4:
	TBZ  $4, R9, arg5
	MOVD (R4), R4
arg5:
	TBZ  $5, R9, ready
	MOVD (R5), R5
ready:
	SUBS $4096, R8, R9
	BHS  special
	SVC
	CMN  $4095, R0
	BHS  failed
store:
	MOVD 64(R19), R9
	CBZ  R9, next
	MOVD R0, (R9)
next:
	ADD  $96, R19
	JMP  loop
special:
	CMP  $1, R9
	BEQ  compare
	BHI  compute
	MOVD 80(R19), R19
	JMP  loop
compare:
	EOR  R1, R0, R9
	AND  R2, R9
	MOVD ZR, R0
	CBZ  R9, store
	NEG  R3, R0
	JMP  failed
compute:
	LSR  R1, R0
	AND  R2, R0
	ADD  R3, R0
	JMP  store
failed:
	NEG  R0, R0
	MOVD R0, R10
	CMP  $63, R10
	BLS  masked
	MOVD $63, R10
masked:
	MOVD 72(R19), R9
	LSR  R10, R9
	TBZ  $0, R9, abort
	MOVD 88(R19), R9
	CBZ  R9, resume
	MOVD R0, (R9)
resume:
	MOVD 80(R19), R9
	CBZ  R9, next
	MOVD R9, R19
	JMP  loop
abort:
	MOVD R19, 8(R20)
	MOVD R0, 16(R20)
	MOVD 24(R20), R0
	ADD  $8, R20, R1
	MOVD $16, R2
	MOVD $64, R8
	SVC
	MOVD $127, R0
	MOVD $94, R8
	SVC
	UNDEF
	WORD $0x47474e4f
	WORD $0x444e4549
	RET
