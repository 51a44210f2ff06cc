.L:
	vmovdqa64	%zmm5, %zmm9
	vpbroadcastq	(%r14,%rbx,8), %zmm5
	vpunpcklqdq	(%r11,%rbx,8){1to8}, %zmm5, %zmm5
	vmovdqa64	%zmm5, %zmm10
	vpshldvq	%zmm6, %zmm9, %zmm10
	vpermb	%zmm10, %zmm7, %zmm9
	vgf2p8affineqb	$0, %zmm9, %zmm8, %zmm9
	vmovdqa64	%zmm0, %zmm10
	vpermt2b	%zmm2, %zmm9, %zmm10
	vmovdqa64	%zmm1, %zmm11
	vpermt2b	%zmm3, %zmm9, %zmm11
	vpmovb2m	%zmm9, %k1
	vmovdqu8	%zmm11, %zmm10 {%k1}
	vpdpbusd	(%rax,%rbx,8), %zmm10, %zmm4
	addq	$8, %rbx
	cmpq	%rcx, %rbx
	jl	.L
