"""A run of seconds that passes through everything: curriculum, dense and sparse steps, evaluation, checkpoints."""

from configs import recall


def get_config(arg: str = ""):
    config = recall.get_config("smoke")
    config.data.seq_len = 32
    config.data.num_pairs = 2
    config.data.num_queries = 2
    config.data.curriculum = ((0, 16, 1), (8, 32, 2))
    config.model.num_layers = 1
    config.model.layer_pattern = ("selective",)
    config.model.width = 16
    config.model.num_heads = 2
    config.model.head_dim = 8
    config.model.mlp_width = 16
    config.model.budget = 16
    config.model.block_size = 4
    config.model.router_dim = 4
    config.training.steps = 60
    config.training.dense_steps = 8
    config.training.checkpoint_every = 5
    config.training.log_every = 1
    config.training.eval_every = 20
    return config
