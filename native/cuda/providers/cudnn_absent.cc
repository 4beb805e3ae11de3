// In place of cudnn.cc where cudnn-frontend's headers were not found.
#include "cuda/providers/cudnn.h"

namespace effnet::cuda {

const char* Cudnn::absent() {
  return "this build was made without cudnn-frontend's headers. npm run setup -- --cuda-libraries brings them, npm run "
         "build takes them in";
}
StatusOr<std::shared_ptr<const Cudnn>> Cudnn::create() { return Status(Code::backend_missing, absent()); }
StatusOr<std::shared_ptr<const Cudnn>> Cudnn::for_device(const std::string&) {
  return Status(Code::backend_missing, absent());
}
StatusOr<std::string> Cudnn::describe_device(int) { return Status(Code::backend_missing, absent()); }

}  // namespace effnet::cuda
