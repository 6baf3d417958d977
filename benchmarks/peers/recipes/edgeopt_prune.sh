# The same, with channels worth the fraction $PRUNE of the MACs, a third, removed first.
edgeopt compress --run run --int8 --prune $PRUNE --target onnxruntime --target openvino $SETTING $PRUNE_SETTING
edgeopt build --run run --target onnxruntime
edgeopt build --run run --target openvino
