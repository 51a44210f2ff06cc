.L:
	movq	(%r13,%rbp,8), %rdi
	movq	(%rcx,%rbp,8), %r8
	vpbroadcastq	%rdi, %zmm9
	vpbroadcastq	%r8, %zmm10
	vpunpcklqdq	%zmm10, %zmm9, %zmm9
	vmovdqa64	%zmm9, %zmm10
	vpshldvq	%zmm6, %zmm5, %zmm10
	vpermb	%zmm10, %zmm7, %zmm5
	vgf2p8affineqb	$0, %zmm5, %zmm8, %zmm5
	vmovdqa64	%zmm0, %zmm10
	vpermt2b	%zmm1, %zmm5, %zmm10
	vmovdqa64	%zmm2, %zmm11
	vpermt2b	%zmm3, %zmm5, %zmm11
	vpmovb2m	%zmm5, %k1
	vmovdqu8	%zmm11, %zmm10 {%k1}
	vpdpbusd	(%rax,%rbp,8), %zmm10, %zmm4
	addq	$8, %rbp
	addq	$-8, %rdx
	vmovdqa64	%zmm9, %zmm5
	cmpq	%rsi, %rbp
	cmpq	$8, %rdx
	jge	.L
