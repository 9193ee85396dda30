"""The systems that train.py --model knows, a file each; catalogue.py names them."""
