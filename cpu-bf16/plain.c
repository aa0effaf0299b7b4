// cpu-bf16/plain.c - the product of blocks in plain C, for machines without AMX: to check with, and
// slowly to train.
#include "product.h"

static void nothing(void) {}

const multiplier plain_multiplier = {"plain C tiles", nothing, nothing, block_product};
