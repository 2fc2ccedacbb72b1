#include "textflag.h"

// func cloneAndRun(args unsafe.Pointer, size uintptr, ops, status unsafe.Pointer) int
//
// The child shares the parent's stack pointer, and is safe because it never touches the stack.
TEXT ·cloneAndRun(SB),NOSPLIT|NOFRAME,$0-40
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ ops+16(FP), R12
	MOVQ status+24(FP), R13
	MOVQ $435, AX
	SYSCALL
	TESTQ AX, AX
	JEQ  child
	MOVQ AX, ret+32(FP)
	RET
child:
	JMP ·interpret(SB)

// func interpreterAddr() unsafe.Pointer
TEXT ·interpreterAddr(SB),NOSPLIT,$0-8
	LEAQ ·interpret(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// The interpreter. R12 is the current operation, R13 the status. It uses no stack and calls nothing, so that it can
// be copied anywhere. Layout of an operation: see Op.
TEXT ·interpret(SB),NOSPLIT|NOFRAME,$0-0
loop:
	MOVQ 0(R12), AX
	MOVQ 8(R12), DI
	MOVQ 16(R12), SI
	MOVQ 24(R12), DX
	MOVQ 32(R12), R10
	MOVQ 40(R12), R8
	MOVQ 48(R12), R9
	MOVQ 56(R12), BX
	TESTQ BX, BX
	JEQ  ready
	TESTQ $1, BX
	JEQ  arg1
	MOVQ (DI), DI
arg1:
	TESTQ $2, BX
	JEQ  arg2
	MOVQ (SI), SI
arg2:
	TESTQ $4, BX
	JEQ  arg3
	MOVQ (DX), DX
arg3:
	TESTQ $8, BX
	JEQ  arg4
	MOVQ (R10), R10
arg4:
	TESTQ $16, BX
	JEQ  arg5
	MOVQ (R8), R8
arg5:
	TESTQ $32, BX
	JEQ  ready
	MOVQ (R9), R9
ready:
	CMPQ AX, $4096
	JCC  special
	SYSCALL
	CMPQ AX, $0xfffffffffffff001
	JCC  failed
store:
	MOVQ 64(R12), BX
	TESTQ BX, BX
	JEQ  next
	MOVQ AX, (BX)
next:
	ADDQ $96, R12
	JMP  loop
special:
	CMPQ AX, $4097
	JEQ  compare
	JCC  compute
	MOVQ 80(R12), R12
	JMP  loop
compare:
	XORQ AX, AX
	XORQ SI, DI
	ANDQ DX, DI
	JEQ  store
	SUBQ R10, AX
	JMP  failed
compute:
	MOVQ SI, CX
	SHRQ CX, DI
	ANDQ DX, DI
	LEAQ (DI)(R10*1), AX
	JMP  store
failed:
	NEGQ AX
	MOVQ AX, CX
	CMPQ CX, $63
	JLS  masked
	MOVQ $63, CX
masked:
	MOVQ 72(R12), BX
	BTQ  CX, BX
	JCC  abort
	MOVQ 88(R12), BX
	TESTQ BX, BX
	JEQ  resume
	MOVQ AX, (BX)
resume:
	MOVQ 80(R12), BX
	TESTQ BX, BX
	JEQ  next
	MOVQ BX, R12
	JMP  loop
abort:
	MOVQ R12, 8(R13)
	MOVQ AX, 16(R13)
	MOVQ 24(R13), DI
	LEAQ 8(R13), SI
	MOVQ $16, DX
	MOVQ $1, AX
	SYSCALL
	MOVQ $127, DI
	MOVQ $231, AX
	SYSCALL
	INT  $3
	BYTE $0x4f; BYTE $0x4e; BYTE $0x47; BYTE $0x47
	BYTE $0x49; BYTE $0x45; BYTE $0x4e; BYTE $0x44
	RET
