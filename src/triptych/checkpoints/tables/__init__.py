"""Key tables: published names of tensors -> ours."""
