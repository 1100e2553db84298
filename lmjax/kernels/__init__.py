"""Operations with several implementations, see `choice`."""

OPERATIONS = (
  'attention',
  'blockwise_update',
  'delta_rule',
  'linear_cross_entropy',
  'quant_matmul',
)
