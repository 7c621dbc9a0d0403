"""Other people's weights -> bundle: torchvision, Caffe and its NumPy port, cuda-convnet. Nothing is unpickled."""
