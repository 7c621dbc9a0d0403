"""Import of weights of torchvision, Caffe and cuda-convnet into bundles. Nothing is unpickled."""
