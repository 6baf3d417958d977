# The same, with channels worth a third of the MACs removed first.
edgeopt compress --run run --int8 --prune 0.3333333333333333 --target onnxruntime --target openvino $SETTING $PRUNE_SETTING
edgeopt build --run run --target onnxruntime
edgeopt build --run run --target openvino
